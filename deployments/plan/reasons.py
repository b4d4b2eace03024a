"""Why this layout and not another: the plan's sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from deployments.plan.hosts import GIB
from deployments.plan.layouts import Seat
from deployments.plan.model import ModelConfig
from deployments.plan.search import NEAR, NVLINK_GBPS, ROOMY, Candidate
from deployments.plan.speed import workload
from deployments.plan.wishes import Wishes
from deployments.plan.words import count, gib, rate

_LISTED = 3  # GPUs named in one sentence


@dataclass(frozen=True)
class Case:
    """What was planned for, as the sentences need it."""

    model: ModelConfig
    wishes: Wishes
    seats: Sequence[Seat]
    gbps: float
    measured: bool  # whether the network was


def reasons(case: Case, chosen: Candidate, length: int) -> list[str]:
    """Sentences for the layout that was chosen, the weightiest first."""
    parts = (_weights, _copies, _tensor, _pipeline, _others, _cache, _context, _ranking, _model)
    return [sentence for part in parts for sentence in part(case, chosen, length)]


def _weights(case: Case, chosen: Candidate, length: int) -> Iterator[str]:
    offered = max(group.requested for copy in chosen.copies for group in copy.groups)
    yield _("The weights take %(weights)s; vLLM may use %(offered)s of one %(gpu)s (%(share).2f of its memory).") % {
        "weights": gib(case.model.weights_bytes),
        "offered": gib(offered),
        "gpu": chosen.seats[0].gpu.name,
        "share": chosen.utilization,
    }


def _copies(case: Case, chosen: Candidate, length: int) -> Iterator[str]:
    copies, world = len(chosen.copies), chosen.tensor * chosen.pipeline
    if copies > 1:
        where = _("One GPU holds") if world == 1 else _("%(count)d GPUs hold") % {"count": world}
        yield _(
            "%(where)s a whole copy, so %(copies)d independent copies answer side by side instead of one"
            " that is spread"
            " out; each has a KV cache of its own."
        ) % {"where": where, "copies": copies}
    idle = len(case.seats) - copies * world
    if idle:
        yield ngettext(
            "%(idle)d GPU stays free: it would hardly make this faster, or it does not fit the layout.",
            "%(idle)d GPUs stay free: they would hardly make this faster, or they do not fit the layout.",
            idle,
        ) % {"idle": idle}


def _tensor(case: Case, chosen: Candidate, length: int) -> Iterator[str]:
    if chosen.tensor == 1:
        return
    heads = {"heads": case.model.heads, "kv": case.model.kv_heads, "tensor": chosen.tensor}
    if case.model.latent or case.model.kv_heads < chosen.tensor:
        yield _("%(heads)d attention heads can be cut into %(tensor)d.") % heads
    else:
        yield _("%(heads)d attention heads and %(kv)d KV heads can be cut into %(tensor)d.") % heads
    if not chosen.tensor_crosses:
        yield _("Tensor parallelism talks in every layer; here it stays inside a host.")
    elif case.gbps >= NVLINK_GBPS:
        yield _("The network of %(gbps)g Gbit/s is as fast as NVLink, so tensor parallelism may cross hosts.") % {
            "gbps": case.gbps
        }
    elif case.wishes.tensor:
        yield _("Tensor parallelism over hosts was asked for: every layer waits for the network twice.")
    else:
        yield _("It fits only with tensor parallelism over hosts: every layer waits for the network twice.")


def _pipeline(case: Case, chosen: Candidate, length: int) -> Iterator[str]:
    if chosen.pipeline == 1:
        return
    hosts = len({group.seats[0].host for group in chosen.copies[0].groups})
    layers = len(case.model.layers)
    if hosts > 1:
        yield _(
            "A copy lies over %(hosts)d hosts joined by %(gbps)g Gbit/s. A pipeline hands over once a"
            " stage; tensor"
            " parallelism would talk twice in each of the %(layers)d layers."
        ) % {"hosts": hosts, "gbps": case.gbps, "layers": layers}
    partition = chosen.copies[0].partition
    parts = [stage.end_layer - stage.first_layer for stage in chosen.copies[0].stages]
    words = {"layers": layers, "parts": ", ".join(map(str, parts))}
    if partition:
        yield (
            _(
                "The stages take %(parts)s of the %(layers)d layers, by the memory of their GPUs"
                " (VLLM_PP_LAYER_PARTITION)."
            )
            % words
        )
    else:
        yield (
            _(
                "The stages take %(parts)s of the %(layers)d layers; the first also holds the embedding and"
                " the last the"
                " LM head."
            )
            % words
        )


def _others(case: Case, chosen: Candidate, length: int) -> Iterator[str]:
    busy = [seat for seat in case.seats if seat.gpu.memory_used_mib * (1 << 20) >= 0.05 * GIB]
    used = {(seat.host, seat.gpu.index) for seat in chosen.seats}
    kept = [seat for seat in busy if (seat.host, seat.gpu.index) in used]
    left = [seat for seat in busy if (seat.host, seat.gpu.index) not in used]
    if kept:
        yield _(
            "Other processes hold memory on %(gpus)s; a gpu-memory-utilization of %(share).2f lets vLLM"
            " start beside"
            " them. The same share holds for all ranks."
        ) % {"gpus": _named(kept), "share": chosen.utilization}
    if left:
        yield _("Not used, while other processes hold memory there: %(gpus)s.") % {"gpus": _named(left)}


def _named(seats: Sequence[Seat]) -> str:
    words = [
        _("%(host)s GPU %(gpu)d (%(size)s)")
        % {"host": s.host, "gpu": s.gpu.index, "size": gib(s.gpu.memory_used_mib * (1 << 20))}
        for s in seats[:_LISTED]
    ]
    rest = len(seats) - _LISTED
    return ", ".join(words) + (_(" and %(count)d more") % {"count": rest} if rest > 0 else "")


def _cache(case: Case, chosen: Candidate, length: int) -> Iterator[str]:
    tightest = min(chosen.copies, key=lambda copy: copy.kv_tokens)
    stage = min(tightest.stages, key=lambda s: s.tokens(case.wishes.block_size))
    yield _(
        "After weights of %(weights)s and %(overhead)s of working memory the fullest GPU has %(room)s for"
        " the KV cache;"
        " a token takes %(token).1f KiB there, so %(tokens)s tokens fit."
    ) % {
        "weights": gib(stage.weights),
        "overhead": gib(stage.overhead),
        "room": gib(stage.kv_room),
        "token": stage.kv_per_token / 1024,
        "tokens": count(chosen.kv_tokens),
    }


def _context(case: Case, chosen: Candidate, length: int) -> Iterator[str]:
    own, wished = case.model.longest, case.wishes.max_model_len
    if not wished and own > length:
        yield _("max-model-len is set to %(length)s: the model allows %(own)s tokens, but no more fit.") % {
            "length": count(length),
            "own": count(own),
        }
    elif not wished:
        yield _("A request may be as long as the model allows, %(length)s tokens.") % {"length": count(length)}
    yield _("%(requests).1f requests of %(length)s tokens fit at once; more of them wait, or shorter ones fit.") % {
        "requests": chosen.kv_tokens / length,
        "length": count(length),
    }


def _ranking(case: Case, chosen: Candidate, length: int) -> Iterator[str]:
    prompt, answer = workload(case.wishes.max_model_len or case.model.longest or length)
    yield _(
        "Layouts are ranked by the expected tokens a second with %(sequences)d requests at once (%(prompt)d"
        " tokens in,"
        " %(answer)d out), then by room for context. This one: about %(speed)s tokens a second."
    ) % {
        "sequences": case.wishes.sequences,
        "prompt": prompt,
        "answer": answer,
        "speed": rate(chosen.speed),
    }
    if not case.measured and len({seat.host for seat in case.seats}) > 1:
        yield _("The network between the hosts was not measured; %(gbps)g Gbit/s are assumed.") % {"gbps": case.gbps}


def _model(case: Case, chosen: Candidate, length: int) -> Iterator[str]:
    model = case.model
    if model.latent:
        yield _("The model keeps one latent vector a token (MLA), which every rank of a tensor group must hold whole.")
    if model.sliding:
        yield _("Some layers keep only a window of the context, so the KV cache will hold more than predicted here.")
    if not model.latent and chosen.tensor > model.kv_heads:
        yield _("With fewer KV heads than GPUs each KV head is held by %(count)d GPUs.") % {
            "count": chosen.tensor // model.kv_heads
        }


def why_lower(case: Case, chosen: Candidate, other: Candidate) -> str:
    """Why ``other``, which fits, was not chosen."""
    words = {
        "pace": _("Not much faster") if other.speed > 1.05 * chosen.speed else _("About as fast"),
        "speed": rate(other.speed),
        "best": rate(chosen.speed),
        "gbps": case.gbps,
        "tokens": count(other.room),
        "room": count(chosen.room),
        "longest": count(other.kv_tokens),
        "own": count(min(chosen.target, chosen.kv_tokens)),
    }
    if case.wishes.tensor not in (None, other.tensor) or case.wishes.pipeline not in (None, other.pipeline):
        return _("Not what was asked for. Expected: about %(speed)s tokens a second, room for %(tokens)s.") % words
    if other.tensor_crosses and case.gbps < NVLINK_GBPS and other.speed >= NEAR * chosen.speed:
        return _("%(pace)s (%(speed)s tokens a second), but every layer would wait for the network.") % words
    if other.tensor_crosses and case.gbps < NVLINK_GBPS:
        return (
            _(
                "Every layer would wait for the %(gbps)g Gbit/s network: about %(speed)s tokens a second"
                " instead of %(best)s."
            )
            % words
        )
    if other.speed < NEAR * chosen.speed:
        return _("Slower: about %(speed)s tokens a second instead of %(best)s.") % words
    if other.stacked and not chosen.stacked:
        return (
            _(
                "Inside a host tensor parallelism comes first, since it answers a single request sooner."
                " Expected: about %(speed)s tokens a second."
            )
            % words
        )
    if other.crosses and not chosen.crosses:
        return _("%(pace)s (%(speed)s tokens a second), but each copy would depend on the network.") % words
    return _less_room(chosen, other) % words


def _less_room(chosen: Candidate, other: Candidate) -> str:
    """What tells two layouts of about the same speed apart."""
    if other.worth < ROOMY * chosen.worth and other.kv_tokens < min(other.target, chosen.kv_tokens):
        return _(
            "%(pace)s (%(speed)s tokens a second), but the longest request could have %(longest)s tokens"
            " instead of %(own)s."
        )
    if other.worth < ROOMY * chosen.worth:
        return _("%(pace)s (%(speed)s tokens a second), but room for %(tokens)s tokens instead of %(room)s.")
    if other.tensor * other.pipeline > chosen.tensor * chosen.pipeline:
        return _("%(pace)s and not roomier, and each copy would depend on more GPUs.")
    return _("As roomy, but not faster: about %(speed)s tokens a second instead of %(best)s.")
