"""The plan where there is no GPU: one worker a host, as trials and tests need it. Nothing is ranked here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from deployments.plan.hosts import GIB, MIB, HostSpec
from deployments.plan.limits import impossible
from deployments.plan.memory import Memory, even_partition
from deployments.plan.model import ModelConfig
from deployments.plan.result import Layout, Nearest, Placement, Plan
from deployments.plan.wishes import Wishes
from deployments.plan.words import count, gib

BLOCK = 128  # tokens a KV block holds on CPU
#: Python, PyTorch, Ray and the server itself; measured at 1.4 GB for vLLM and 0.7 GB for a Ray head.
RUNTIME = int(2.5 * GIB)
#: Small enough for any machine that can run the engine at all; more cache only when a wished context needs it. Left
#: to itself, vLLM takes 92 % of the host's memory for its KV cache on CPUs.
CACHE, SEQUENCES = 512 * MIB, 8
BATCHED_TOKENS = 2048
_LAYOUT = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")
_ROOM = ("max-model-len", "kv-cache-memory-bytes")
_STEPS = (_LAYOUT, _ROOM, _LAYOUT + _ROOM)


@dataclass(frozen=True)
class _Worker:
    """One rank: the host, its share of the layers, and bytes."""

    host: HostSpec
    stage: int
    layers: tuple[int, int]
    weights: int
    overhead: int
    token: int  # that a token takes in its cache
    left: int  # for the cache; may be negative

    def cache(self, length: int) -> int:
        """Bytes for one request of ``length`` tokens, in whole blocks."""
        return -(-length // BLOCK) * BLOCK * self.token


def plan_on_cpu(model: ModelConfig, hosts: Sequence[HostSpec], wishes: Wishes) -> Plan:
    """The wished layout, else the fewest hosts whose free memory holds weights and KV cache, one copy."""
    outcome = _first(model, hosts, wishes)
    return outcome if outcome.feasible else replace(outcome, nearest=_nearest(model, hosts, wishes))


def _nearest(model: ModelConfig, hosts: Sequence[HostSpec], wishes: Wishes) -> Nearest | None:
    """What fits once some wishes are given up; None where nothing does, or the plan cannot be changed by flags."""
    for given_up in _STEPS:
        asked = [name for name in given_up if name in wishes.flags]
        found = _first(model, hosts, wishes.without(*given_up)) if asked else Plan()
        if found.layout:
            fits = {**found.flags, "data-parallel-size": found.layout.replicas}
            flags = {name: fits[name] for name in asked if name in fits}
            words = ", ".join(f"{name}={value}" for name, value in flags.items())
            sentence = _("The nearest that fits: %(flags)s, with room for %(tokens)s tokens.")
            told = sentence % {"flags": words, "tokens": count(found.kv_tokens)}
            return Nearest(told, found.layout, flags, 0)
    return None


def _first(model: ModelConfig, hosts: Sequence[HostSpec], wishes: Wishes) -> Plan:
    """The first layout that fits, or why the first that was tried does not."""
    offered = sorted(hosts, key=lambda host: -host.memory_available_mib)
    tensor, copies = wishes.tensor or 1, wishes.replicas or 1
    pipelines = [wishes.pipeline] if wishes.pipeline else range(1, min(len(offered), len(model.layers)) + 1)
    outcome = Plan(problems=tuple(impossible(model, hosts, wishes)))
    for pipeline in pipelines if not outcome.problems else ():
        found = _planned(model, offered, wishes, Layout(tensor, pipeline, copies))
        if found.feasible:
            return found
        outcome = outcome if outcome.problems else found
    return outcome


def _planned(model: ModelConfig, offered: Sequence[HostSpec], wishes: Wishes, layout: Layout) -> Plan:
    size = layout.tensor * layout.pipeline
    needed = size * layout.replicas
    if needed > len(offered) > 1 or (len(offered) == 1 and layout.replicas > 1):
        said = _("Without GPUs each host has one worker; the layout needs %(needed)d hosts, there are %(hosts)d.")
        return Plan(problems=(said % {"needed": needed, "hosts": len(offered)},))
    alone = needed if len(offered) == 1 else 1  # workers that share the one host's memory
    workers = [_worker(model, offered[rank % len(offered)], wishes, layout, rank, alone) for rank in range(needed)]
    cache, tokens = _cache(model, workers, wishes)
    length = wishes.max_model_len or min(model.longest or tokens, tokens)
    poorest = min(workers, key=lambda worker: worker.left)
    if cache > poorest.left or not 0 < length <= tokens:
        return Plan(problems=(_too_large(poorest),))
    return Plan(
        layout=layout,
        placement=tuple(_placement(worker, rank, tokens, size) for rank, worker in enumerate(workers)),
        kv_tokens=tokens,
        max_model_len=length,
        flags={
            **wishes.without("data-parallel-size").flags,
            "tensor-parallel-size": layout.tensor,
            "pipeline-parallel-size": layout.pipeline,
            "max-model-len": length,
            "max-num-seqs": wishes.max_num_seqs or SEQUENCES,
            "kv-cache-memory-bytes": cache,
        },
        reasons=_reasons(workers[:size], cache, tokens),
    )


def _worker(
    model: ModelConfig, host: HostSpec, wishes: Wishes, layout: Layout, rank: int, alone: int
) -> _Worker:
    stage = rank % (layout.tensor * layout.pipeline) // layout.tensor
    parts = even_partition(len(model.layers), layout.pipeline)
    first = sum(parts[:stage])
    end = first + parts[stage]
    sequences = wishes.max_num_seqs or SEQUENCES
    eager = wishes.having(enforce_eager=True)
    memory = Memory(model, layout.tensor, eager, wishes.batched_tokens or BATCHED_TOKENS, sequences)
    weights, overhead = memory.weights(first, end), memory.overhead(first, end) + RUNTIME
    left = host.memory_available_mib * MIB // alone - weights - overhead
    return _Worker(host, stage, (first, end), weights, overhead, memory.kv_per_layer * (end - first), left)


def _cache(model: ModelConfig, workers: Sequence[_Worker], wishes: Wishes) -> tuple[int, int]:
    """Bytes of cache on each worker, and the tokens that fit into all of them."""
    poorest = min(workers, key=lambda worker: worker.left)
    wished = max(worker.cache(wishes.max_model_len or 0) for worker in workers)
    cache = wishes.kv_cache_bytes or -(-max(wished, min(CACHE, poorest.left // 2)) // MIB) * MIB
    return cache, min(cache // (worker.token * BLOCK) * BLOCK for worker in workers)


def _placement(worker: _Worker, rank: int, tokens: int, size: int) -> Placement:
    return Placement(
        worker.host.name, None, rank, worker.weights, tokens * worker.token, worker.overhead, rank // size,
        worker.stage, worker.layers)


def _reasons(workers: Sequence[_Worker], cache: int, tokens: int) -> tuple[str, ...]:
    hosts = list(dict.fromkeys(worker.host.name for worker in workers))
    first = ngettext(
        "There is no GPU, so vLLM runs as one worker on the processors of %(host)s: good for a trial, slow for more.",
        "There is no GPU, so vLLM runs as %(count)d workers on the processors of %(host)s: good for a trial, slow for"
        " more.",
        len(workers),
    ) % {"host": ", ".join(hosts), "count": len(workers)}
    return (
        first,
        _("The weights take %(weights)s of its memory, the KV cache %(cache)s with room for %(tokens)s tokens.")
        % {"weights": gib(max(worker.weights for worker in workers)), "cache": gib(cache), "tokens": count(tokens)},
    )


def _too_large(worker: _Worker) -> str:
    host, needed = worker.host, worker.weights + worker.overhead
    if not host.memory_available_mib:
        return _("%(host)s has no GPU, and its free memory is not known.") % {"host": host.name}
    if worker.left <= 0:
        return _("%(host)s has no GPU, and the model needs %(needed)s of its memory; %(free)s are free.") % {
            "host": host.name,
            "needed": gib(needed),
            "free": gib(host.memory_available_mib * MIB),
        }
    return _("%(host)s has %(left)s of memory left for the KV cache, which is not enough for the wished context.") % {
        "host": host.name,
        "left": gib(worker.left),
    }
