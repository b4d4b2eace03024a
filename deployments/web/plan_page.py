"""A plan as a page shows it: a bar for each GPU, stages, figures, alternatives. Nothing is decided here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from deployments.plan import Alternative, HostSpec, Layout, Nearest, Placement, Plan
from deployments.plan.hosts import MIB, GpuSpec
from deployments.plan.words import layout as words_of
from deployments.plan.words import rate
from deployments.planning import Ground, Planned

#: Rows of the table of GPUs, alternatives, and stages that are drawn; the rest is counted.
MOST_BARS, MOST_OTHERS, MOST_STAGES = 16, 12, 8
#: Others' memory below this is the driver's own: an idle GPU has some.
_NOTHING = 64 * MIB


class Piece(NamedTuple):
    """A piece of a bar, in percent of its width."""

    look: str
    start: float
    width: float


@dataclass(frozen=True)
class Bar:
    """What one GPU is predicted to hold, in bytes; or the memory of a host that has none."""

    host: str
    gpu: int | None
    total: int
    weights: int = 0
    overhead: int = 0
    kv: int = 0
    others: int = 0
    taken_by: str = ""
    mark: float = 0.0  # the share that vLLM may take, in percent

    @property
    def used(self) -> bool:
        return self.weights > 0

    @property
    def free(self) -> int:
        return max(0, self.total - self.weights - self.overhead - self.kv - self.others)

    @property
    def pieces(self) -> list[Piece]:
        """From the left: weights, overhead, KV cache, free, others."""
        parts = (("f-d1", self.weights), ("f-d3", self.overhead), ("f-d2", self.kv), ("f-free", self.free))
        found, at = [], 0.0
        for look, size in (*parts, ("others", self.others)):
            width = round(100 * size / max(1, self.total), 2)
            found.append(Piece(look, round(at, 2), width))
            at += width
        return found


class StageShown(NamedTuple):
    """One pipeline stage of the first copy."""

    number: int
    first: int
    last: int
    hosts: list[tuple[str, list[Placement]]]
    size: int  # tensor ranks


class Other(NamedTuple):
    """An alternative: ``use`` sets the form's fields to it, as JSON; empty where it is impossible."""

    words: str
    alternative: Alternative
    use: str


@dataclass(frozen=True)
class Shown:
    """Everything the plan's part of a page needs."""

    planned: Planned
    words: str
    bars: list[Bar]
    more_bars: int
    stages: list[StageShown]
    more_stages: int
    others: list[Other]
    nearest_use: str
    rate: str

    @property
    def plan(self) -> Plan | None:
        return self.planned.plan


def shown(planned: Planned) -> Shown:
    outcome = planned.plan or Plan()
    bars = _bars(planned.ground, outcome)
    stages = list(stages_of(outcome.placement))
    others = [_other(one) for one in outcome.alternatives]
    return Shown(
        planned=planned,
        words=sentence(outcome.layout) if outcome.layout else "",
        bars=bars[:MOST_BARS],
        more_bars=max(0, len(bars) - MOST_BARS),
        stages=stages[:MOST_STAGES],
        more_stages=max(0, len(stages) - MOST_STAGES),
        others=sorted(others, key=lambda one: not one.use)[:MOST_OTHERS],
        nearest_use=_nearest_use(outcome.nearest) if outcome.nearest else "",
        rate=rate(outcome.tokens_per_second) if outcome.tokens_per_second else "",
    )


def sentence(layout: Layout) -> str:
    """``2 copies, each 4 pipeline stages of 2 GPUs``."""
    size = ngettext("%(count)d GPU", "%(count)d GPUs", layout.tensor) % {"count": layout.tensor}
    if layout.pipeline > 1:
        size = _("%(stages)d pipeline stages, %(size)s each") % {"stages": layout.pipeline, "size": size}
    if layout.replicas > 1:
        return _("%(copies)d copies, each on %(size)s") % {"copies": layout.replicas, "size": size}
    return _("one copy on %(size)s") % {"size": size}


def words_of_kept(kept: Mapping[str, Any]) -> str:
    """The layout of a plan that a deployment keeps, as `sentence` says it; empty without one."""
    return sentence(Layout(**kept["layout"])) if kept.get("layout") else ""


def _bars(ground: Ground, outcome: Plan) -> list[Bar]:
    """A bar for each GPU, those that are used first."""
    placed = {(place.host, place.gpu): place for place in outcome.placement}
    mark = 100 * float(outcome.flags.get("gpu-memory-utilization", 0) or 0)
    bars = [bar for host in ground.hosts for bar in _of_host(host, ground, placed, mark)]
    return sorted(bars, key=lambda bar: not bar.used)


def _of_host(
    host: HostSpec, ground: Ground, placed: Mapping[tuple[str, int | None], Placement], mark: float
) -> Iterator[Bar]:
    for gpu in host.gpus:
        place = placed.get((host.name, gpu.index))
        yield _bar(host.name, gpu, place, ground.taken.get((host.name, gpu.index), ""), mark if place else 0.0)
    if not host.gpus and (host.name, None) in placed:
        place = placed[host.name, None]
        busy = (host.memory_total_mib - host.memory_available_mib) * MIB
        total = host.memory_total_mib * MIB
        yield Bar(host.name, None, total, place.weights_bytes, place.overhead_bytes, place.kv_bytes, busy)


def _bar(host: str, gpu: GpuSpec, place: Placement | None, taken_by: str, mark: float) -> Bar:
    others = gpu.memory_used_mib * MIB
    if place is None:
        return Bar(host, gpu.index, gpu.memory_total_mib * MIB, others=others, taken_by=taken_by)
    return Bar(
        host, gpu.index, gpu.memory_total_mib * MIB, place.weights_bytes, place.overhead_bytes, place.kv_bytes,
        others if others > _NOTHING else 0, mark=mark)


def stages_of(placement: tuple[Placement, ...] | list[Placement]) -> Iterator[StageShown]:
    """The stages of the first copy, each with its GPUs by host."""
    first = [place for place in placement if place.replica == 0]
    for number in sorted({place.stage for place in first}):
        ranks = [place for place in first if place.stage == number]
        hosts: dict[str, list[Placement]] = {}
        for place in ranks:
            hosts.setdefault(place.host, []).append(place)
        yield StageShown(number, ranks[0].layers[0], ranks[0].layers[1] - 1, list(hosts.items()), len(ranks))


def _other(one: Alternative) -> Other:
    fits = one.kv_tokens > 0
    tensor, pipeline, replicas = one.layout
    use = _fields({"tensor-parallel-size": tensor, "pipeline-parallel-size": pipeline, "data-parallel-size": replicas})
    return Other(words_of(*one.layout), one, use if fits else "")


def _nearest_use(near: Nearest) -> str:
    """The fields that make the wish the nearest one that fits; those to give up become empty."""
    return _fields({**near.flags, **dict.fromkeys(near.drop)}) if near.flags or near.drop else ""


def _fields(flags: Mapping[str, Any]) -> str:
    """Flags as the form's fields, for static/js/plan.js."""
    names = {"data-parallel-size": "copies"}
    fields = {names.get(name, name.replace("-", "_")): value for name, value in flags.items()}
    if "tensor_parallel_size" in fields or "copies" in fields:
        fields["layout"] = "hand"
    return json.dumps({name: "" if value is None else str(value) for name, value in fields.items()})
