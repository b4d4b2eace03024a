"""The plan where there is no GPU: one worker on one host, as the demo needs it. Nothing is ranked here."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.translation import gettext as _

from deployments.plan.hosts import GIB, MIB, HostSpec
from deployments.plan.memory import Memory
from deployments.plan.model import ModelConfig
from deployments.plan.result import Layout, Placement, Plan
from deployments.plan.wishes import Wishes
from deployments.plan.words import count, gib

BLOCK = 128  # tokens a KV block holds on CPU
#: Python, PyTorch, Ray and the server itself; measured at 1.4 GB for vLLM and 0.7 GB for a Ray head.
RUNTIME = int(2.5 * GIB)
MOST_CACHE = 1 * GIB  # more only when a wished context needs it
SEQUENCES = 16
BATCHED_TOKENS = 2048


def plan_on_cpu(model: ModelConfig, hosts: Sequence[HostSpec], wishes: Wishes) -> Plan:
    """One worker on the host with the most free memory, which holds weights and KV cache."""
    host = max(hosts, key=lambda h: h.memory_available_mib)
    if wishes.tensor not in (None, 1) or wishes.pipeline not in (None, 1) or wishes.replicas not in (None, 1):
        return Plan(problems=(_("None of the hosts has a GPU; without one there is a single worker."),))
    sequences = wishes.max_num_seqs or SEQUENCES
    memory = Memory(model, 1, wishes.having(enforce_eager=True), wishes.batched_tokens or BATCHED_TOKENS, sequences)
    layers = len(model.layers)
    weights, overhead = memory.weights(0, layers), memory.overhead(0, layers) + RUNTIME
    left = host.memory_available_mib * MIB - weights - overhead
    token = memory.kv_per_layer * layers
    wished = -(-(wishes.max_model_len or 0) // BLOCK) * BLOCK * token
    cache = wishes.kv_cache_bytes or -(-max(wished, min(MOST_CACHE, left // 2)) // MIB) * MIB
    tokens = cache // (token * BLOCK) * BLOCK
    length = wishes.max_model_len or min(model.longest or tokens, tokens)
    if cache > left or not 0 < length <= tokens:
        return Plan(problems=(_too_large(host, weights + overhead, left),))
    return Plan(
        layout=Layout(1, 1, 1),
        placement=(Placement(host.name, None, 0, weights, tokens * token, overhead, 0, 0, (0, layers)),),
        kv_tokens=tokens,
        max_model_len=length,
        flags={
            **wishes.without("data-parallel-size").flags,
            "tensor-parallel-size": 1,
            "pipeline-parallel-size": 1,
            "max-model-len": length,
            "max-num-seqs": sequences,
            "kv-cache-memory-bytes": cache,
        },
        reasons=_reasons(host, weights, cache, tokens),
    )


def _reasons(host: HostSpec, weights: int, cache: int, tokens: int) -> tuple[str, ...]:
    return (
        _("There is no GPU, so vLLM runs as one worker on the processors of %(host)s: good for a trial, slow for more.")
        % {"host": host.name},
        _("The weights take %(weights)s of its memory, the KV cache %(cache)s with room for %(tokens)s tokens.")
        % {"weights": gib(weights), "cache": gib(cache), "tokens": count(tokens)},
    )


def _too_large(host: HostSpec, needed: int, left: int) -> str:
    if not host.memory_available_mib:
        return _("%(host)s has no GPU, and its free memory is not known.") % {"host": host.name}
    if left <= 0:
        return _("%(host)s has no GPU, and the model needs %(needed)s of its memory; %(free)s are free.") % {
            "host": host.name,
            "needed": gib(needed),
            "free": gib(host.memory_available_mib * MIB),
        }
    return _("%(host)s has %(left)s of memory left for the KV cache, which is not enough for the wished context.") % {
        "host": host.name,
        "left": gib(left),
    }
