"""What would fit instead of an impossible wish: the smallest change first, more hardware last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from django.utils.translation import gettext as _

from deployments.plan.hosts import HostSpec
from deployments.plan.limits import able, impossible
from deployments.plan.model import ModelConfig
from deployments.plan.result import Layout, Nearest
from deployments.plan.search import Candidate, Search, matches
from deployments.plan.speed import Network
from deployments.plan.wishes import Value, Wishes
from deployments.plan.words import count, layout

_LAYOUT = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")
_LENGTH = ("max-model-len",)
_SHARE = ("gpu-memory-utilization", "kv-cache-memory-bytes")
_BATCH = ("max-num-seqs", "max-num-batched-tokens")
#: Wishes to give up, the least painful first.
_STEPS: tuple[tuple[str, ...], ...] = (
    _LAYOUT,
    _LENGTH,
    _SHARE,
    _LAYOUT + _LENGTH,
    _LAYOUT + _SHARE,
    _LENGTH + _SHARE,
    _LAYOUT + _LENGTH + _SHARE + _BATCH,
)
_TIMES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def nearest(model: ModelConfig, hosts: Sequence[HostSpec], wishes: Wishes, network_gbps: float) -> Nearest | None:
    """The nearest wish that fits these hosts; else what would fit if others left, or with more such hosts."""
    for given_up in _STEPS:
        if not set(given_up) & set(wishes.flags):
            continue
        chosen = _best(model, hosts, wishes.without(*given_up), network_gbps, wishes)
        if chosen:
            return _wish(model, chosen, wishes, given_up)
    emptied = [replace(h, gpus=tuple(replace(g, memory_used_mib=0) for g in h.gpus)) for h in hosts]
    chosen = _best(model, emptied, wishes, network_gbps)
    if chosen and emptied != list(hosts):
        sentence = _("It fits with %(layout)s once other processes have freed the GPUs' memory.")
        return _hardware(chosen, sentence)
    return _more(model, emptied, wishes, network_gbps)


def _best(
    model: ModelConfig,
    hosts: Sequence[HostSpec],
    wishes: Wishes,
    gbps: float,
    original: Wishes | None = None,
) -> Candidate | None:
    """The best layout, or where a layout had been asked for, the one most like it."""
    usable, _notes = able(model, hosts, wishes)
    if impossible(model, usable, wishes):
        return None
    found = [c for c in Search(model, usable, wishes, Network(gbps)).run().candidates if matches(c, wishes)]
    if original and original.tensor and original.tensor != wishes.tensor:
        wished = original.tensor
        return min(found, key=lambda c: abs(c.tensor - wished), default=None)
    return found[0] if found else None


def _wish(model: ModelConfig, chosen: Candidate, wishes: Wishes, given_up: Sequence[str]) -> Nearest:
    """The change of flags, in words and values."""
    length = min(model.longest or chosen.kv_tokens, chosen.kv_tokens)
    fits: dict[str, Value] = {
        "tensor-parallel-size": chosen.tensor,
        "pipeline-parallel-size": chosen.pipeline,
        "data-parallel-size": len(chosen.copies),
        "max-model-len": min(length, wishes.max_model_len or length),
        "gpu-memory-utilization": chosen.utilization,
        "max-num-seqs": wishes.without("max-num-seqs").sequences,
    }
    both_sizes = set(_LAYOUT[:2]) if set(given_up) & set(_LAYOUT) else set()
    changed = {
        name: value for name, value in fits.items() if name in both_sizes or (name in given_up and name in wishes.flags)
    }
    drop = tuple(name for name in given_up if name in wishes.flags and name not in changed)
    new = [f"{name}={value}" for name, value in changed.items() if value != wishes.flags.get(name)]
    words = ", ".join([*new, *(_("no %(flag)s") % {"flag": name} for name in drop)])
    sentence = _("The nearest that fits: %(flags)s, with room for %(tokens)s tokens.") % {
        "flags": words or layout(*chosen.size),
        "tokens": count(chosen.kv_tokens),
    }
    return Nearest(sentence, Layout(*chosen.size), changed, len(chosen.seats), drop)


def _more(model: ModelConfig, hosts: Sequence[HostSpec], wishes: Wishes, gbps: float) -> Nearest | None:
    """How many hosts like the largest one would hold the model."""
    relaxed = wishes.without(*_LAYOUT)
    largest = max(hosts, key=lambda host: sum(gpu.usable_bytes for gpu in host.gpus))
    for times in _TIMES:
        if times * sum(gpu.usable_bytes for gpu in largest.gpus) < model.weights_bytes:
            continue
        more = [replace(largest, name=f"{largest.name}-{i + 1}") for i in range(times)]
        chosen = _best(model, more, relaxed, gbps) or _best(model, more, relaxed.without(*_LENGTH), gbps)
        if chosen:
            names = {seat.host for seat in chosen.seats}
            gpus = len(chosen.seats)
            sentence = _(
                "%(hosts)d hosts like %(host)s (%(gpus)d × %(gpu)s in all) would hold it, with %(layout)s."
            ) % {
                "hosts": len(names),
                "host": largest.name,
                "gpus": gpus,
                "gpu": largest.gpus[0].name,
                "layout": layout(*chosen.size),
            }
            return Nearest(sentence, Layout(*chosen.size), {}, gpus)
    return None


def _hardware(chosen: Candidate, sentence: str) -> Nearest:
    return Nearest(sentence % {"layout": layout(*chosen.size)}, Layout(*chosen.size), {}, len(chosen.seats))
