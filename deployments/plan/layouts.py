"""Which layouts are possible: rules of tensor and pipeline parallelism, and how copies lie over GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain, pairwise
from typing import NamedTuple

from django.utils.translation import gettext as _

from deployments.plan.hosts import DEFAULT_UTILIZATION, GpuSpec, HostSpec, Speed, speed_of
from deployments.plan.memory import Memory, Stage, even_partition
from deployments.plan.model import ModelConfig
from deployments.plan.wishes import Wishes

#: Values of gpu_memory_utilization that are tried where other processes hold memory: all of them on few GPUs, at least
#: three on many.
LEVELS, LEVELS_TIMES_GPUS = 3, 128
LEAST_UTILIZATION = 0.05
_LARGE_PIPELINES = (10, 12, 16, 20, 24, 32, 40, 48, 64, 80)


class Seat(NamedTuple):
    """One GPU of one host."""

    host: str
    gpu: GpuSpec


@dataclass(frozen=True)
class Group:
    """The GPUs of one pipeline stage, as many as the tensor size. The weakest of them counts."""

    seats: tuple[Seat, ...]
    requested: int  # bytes that vLLM takes on each
    crosses: bool  # over more than one host

    @cached_property
    def speed(self) -> Speed:
        return _slowest(frozenset(seat.gpu.name for seat in self.seats))

    @cached_property
    def kind(self) -> tuple[int, Speed, bool]:
        """Groups of one kind behave alike."""
        return self.requested, self.speed, self.crosses


@cache
def _slowest(names: frozenset[str]) -> Speed:
    memory, compute, link = zip(*map(speed_of, names), strict=True)
    return Speed(min(memory), min(compute), min(link))


@dataclass(frozen=True)
class Copy:
    """One replica: its stages and the GPUs they run on."""

    groups: tuple[Group, ...]
    stages: tuple[Stage, ...]
    partition: tuple[int, ...] | None  # layers a stage where it differs from vLLM's own cut
    kv_tokens: int


def hops(groups: Sequence[Group]) -> tuple[bool, ...]:
    """For each hand-over between stages, whether it leaves the host."""
    return tuple(a.seats[-1].host != b.seats[0].host for a, b in pairwise(groups))


def tensor_problem(model: ModelConfig, tensor: int, wishes: Wishes) -> str:
    """Why the model cannot be cut into ``tensor`` pieces, as one sentence; empty if it can."""
    if model.heads % tensor:
        return _("%(heads)d attention heads cannot be divided by %(tensor)d.") % {
            "heads": model.heads,
            "tensor": tensor,
        }
    kv = model.kv_heads
    if not model.latent and (kv % tensor if kv >= tensor else tensor % kv):
        return _("%(kv)d KV heads can be neither divided nor evenly copied over %(tensor)d GPUs.") % {
            "kv": kv,
            "tensor": tensor,
        }
    for width in model.intermediate:
        if width % tensor and not (wishes.expert_parallel and width == model.intermediate[0] and model.experts):
            return _("The MLP's width of %(width)d cannot be divided by %(tensor)d.") % {
                "width": width,
                "tensor": tensor,
            }
    if model.padded_vocabulary % tensor:
        return _("The vocabulary of %(size)d cannot be divided by %(tensor)d.") % {
            "size": model.padded_vocabulary,
            "tensor": tensor,
        }
    return ""


def pipeline_sizes(limit: int) -> list[int]:
    """Pipeline sizes worth a look up to ``limit``: all small ones, then coarser steps."""
    return [size for size in chain(range(1, 9), _LARGE_PIPELINES) if size <= limit]


def levels(seats: Sequence[Seat], workers: int, wishes: Wishes) -> list[float]:
    """Values of gpu_memory_utilization to try. One holds for all ranks, so a busy GPU lowers everyone's."""
    if wishes.utilization:
        return [wishes.utilization]
    caps = {min(DEFAULT_UTILIZATION, seat.gpu.most_utilization(workers)) for seat in seats}
    found = sorted((cap for cap in caps if cap >= LEAST_UTILIZATION), reverse=True)
    most = max(LEVELS, LEVELS_TIMES_GPUS // max(1, len(seats)))
    if len(found) <= most:
        return found
    return [found[i * (len(found) - 1) // (most - 1)] for i in range(most)]


def seats_of(hosts: Sequence[HostSpec]) -> list[list[Seat]]:
    """All GPUs by host, alike next to alike and the strongest first, so that groups are of one kind."""
    rows = [
        [Seat(host.name, gpu) for gpu in sorted(host.gpus, key=lambda g: (-g.speed.memory, g.name, -g.usable_bytes))]
        for host in hosts
        if host.gpus
    ]
    return sorted(rows, key=lambda row: (-row[0].gpu.speed.memory, row[0].gpu.name, -row[0].gpu.usable_bytes))


def groups_of(rows: Sequence[Sequence[Seat]], tensor: int, utilization: float, workers: int) -> list[list[Group]]:
    """GPUs with enough free memory by ``tensor``: inside hosts if any host has enough, else across."""
    free = [[s for s in row if s.gpu.most_utilization(workers) >= utilization] for row in rows]
    local = [_chunks(row, tensor, utilization) for row in free]
    if any(local):
        return [row for row in local if row]
    across = _chunks([seat for row in free for seat in row], tensor, utilization)
    return [across] if across else []


def _chunks(seats: Sequence[Seat], tensor: int, utilization: float) -> list[Group]:
    found = []
    for start in range(0, len(seats) - tensor + 1, tensor):
        chosen = tuple(seats[start : start + tensor])
        requested = min(seat.gpu.requested(utilization) for seat in chosen)
        found.append(Group(chosen, requested, chosen[0].host != chosen[-1].host))
    return found


def runs_of(rows: Sequence[Sequence[Group]], pipeline: int) -> Iterator[tuple[Group, ...]]:
    """Groups for one copy after another: inside hosts if any host has enough, else from host to host."""
    wide = [row for row in rows if len(row) >= pipeline]
    sources = wide or [[group for row in rows for group in row]]
    for row in sources:
        for start in range(0, len(row) - pipeline + 1, pipeline):
            yield tuple(row[start : start + pipeline])


class Copies:
    """Cuts the model over runs of groups; runs of the same kinds are computed once."""

    def __init__(self, memory: Memory, needed: int) -> None:
        self.memory = memory
        self.needed = needed  # tokens that must fit
        self._known: dict[tuple[tuple[int, Speed, bool], ...], Copy] = {}

    def feasible(self, rows: Sequence[Sequence[Group]], pipeline: int, most: int) -> list[Copy]:
        """At most ``most`` copies that fit, on disjoint GPUs."""
        found: list[Copy] = []
        for groups in runs_of(rows, pipeline):
            known = self._cut(groups)
            # one configuration for all servers, so they cut the layers alike
            if known.kv_tokens >= self.needed and (not found or known.partition == found[0].partition):
                found.append(known if known.groups is groups else replace(known, groups=groups))
                if len(found) == most:
                    break
        return found

    def copy(self, groups: tuple[Group, ...]) -> Copy:
        """One copy on these groups, whether it fits or not."""
        return replace(self._cut(groups), groups=groups)

    def _cut(self, groups: tuple[Group, ...]) -> Copy:
        key = tuple([group.kind for group in groups])
        if key not in self._known:
            self._known[key] = self._new_cut(groups)
        return self._known[key]

    def _new_cut(self, groups: tuple[Group, ...]) -> Copy:
        """vLLM's own cut where the GPUs are alike and it fits; otherwise the one with the most room."""
        requested, block = [group.requested for group in groups], self.memory.wishes.block_size
        even = self.memory.stages(even_partition(len(self.memory.model.layers), len(groups)), requested)
        tokens = min(stage.tokens(block) for stage in even)
        alike = len({group.kind for group in groups}) == 1
        if len(groups) == 1 or (alike and tokens >= self.needed):
            return Copy(groups, even, None, tokens)
        parts = self.memory.uneven_partition(requested, self.needed)
        stages = self.memory.stages(parts, requested) if parts else even
        most = min(stage.tokens(block) for stage in stages)
        return Copy(groups, stages, parts, most) if most > tokens else Copy(groups, even, None, tokens)
