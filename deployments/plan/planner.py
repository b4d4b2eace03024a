"""From a model, hosts and wishes to a plan. Pure: the same input gives the same plan, in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from deployments.plan.cpu import plan_on_cpu
from deployments.plan.hosts import HostSpec
from deployments.plan.limits import able, impossible
from deployments.plan.model import ModelConfig
from deployments.plan.nearest import nearest
from deployments.plan.reasons import Case, reasons, why_lower
from deployments.plan.result import Alternative, Layout, Placement, Plan
from deployments.plan.search import Candidate, Found, Refusal, Search, matches
from deployments.plan.speed import Network
from deployments.plan.wishes import Value, Wishes
from deployments.plan.words import gib

#: Gbit/s between hosts where nobody measured.
ASSUMED_GBPS = 10.0


def plan(model: ModelConfig, hosts: Sequence[HostSpec], wishes: Wishes, network_gbps: float | None = None) -> Plan:
    """The best layout for the wishes, its flags and reasons; or what is in the way, and what would fit.

    ``network_gbps`` is the measured speed between hosts, one way. Where no host has a GPU, one CPU worker is
    planned.
    """
    model = precise(model, wishes)
    if not any(host.gpus for host in hosts):
        return plan_on_cpu(model, hosts, wishes)
    gbps = network_gbps or ASSUMED_GBPS
    usable, notes = able(model, hosts, wishes)
    search = Search(model, usable, wishes, Network(gbps))
    found = search.run()
    problems = impossible(model, usable, wishes)
    case = Case(model, wishes, search.seats, gbps, measured=network_gbps is not None)
    chosen = next((c for c in found.candidates if matches(c, wishes)), None)
    if chosen and not problems:
        return _feasible(case, chosen, found, notes)
    problems = problems or (_obstacles(case, found) if search.seats else [])
    near = nearest(model, hosts, wishes, gbps)
    fits = _("Fits, but is not what was asked for.")
    others = tuple(_possible(c, problems[0] if matches(c, wishes) else fits) for c in found.candidates)
    return Plan(problems=(*problems, *notes), alternatives=(*others, *map(_refused, found.refusals)), nearest=near)


def precise(model: ModelConfig, wishes: Wishes) -> ModelConfig:
    """The model in the precision that ``--dtype`` and ``--quantization`` ask for."""
    precision = model.precision
    if wishes.dtype:
        precision = precision.as_dtype(wishes.dtype)
    if wishes.quantization:
        precision = precision.quantised_to(wishes.quantization)
    return model if precision is model.precision else replace(model, precision=precision)


def _feasible(case: Case, chosen: Candidate, found: Found, notes: Sequence[str]) -> Plan:
    own = case.model.longest or chosen.kv_tokens
    length = case.wishes.max_model_len or min(own, chosen.kv_tokens)
    others = [c for c in found.candidates if c is not chosen]
    partition = chosen.copies[0].partition
    half = _needs_half(case, chosen)
    return Plan(
        layout=Layout(*chosen.size),
        placement=tuple(_placement(chosen)),
        kv_tokens=chosen.kv_tokens,
        max_model_len=length,
        tokens_per_second=chosen.speed,
        flags=_flags(case.wishes, chosen, length) | ({"dtype": "half"} if half else {}),
        environment={"VLLM_PP_LAYER_PARTITION": ",".join(map(str, partition))} if partition else {},
        reasons=(*reasons(case, chosen, length), *notes, *([_half_reason(chosen)] if half else [])),
        alternatives=(
            *(_possible(c, why_lower(case, chosen, c)) for c in others),
            *map(_refused, found.refusals),
        ),
    )


def _flags(wishes: Wishes, chosen: Candidate, length: int) -> dict[str, Value]:
    """vLLM's flags: the wishes, and what the plan decided. Copies are separate servers, not data parallel."""
    flags = {key: value for key, value in wishes.flags.items() if key != "data-parallel-size"}
    flags |= {
        "tensor-parallel-size": chosen.tensor,
        "pipeline-parallel-size": chosen.pipeline,
        "gpu-memory-utilization": chosen.utilization,
        "max-model-len": length,
        "max-num-seqs": wishes.sequences,
    }
    if chosen.tensor * chosen.pipeline > 1:
        flags.setdefault("distributed-executor-backend", "ray" if chosen.crosses else "mp")
    return flags


def _placement(chosen: Candidate) -> list[Placement]:
    """Ranks in vLLM's order: stage after stage, and within a stage the tensor ranks."""
    block = chosen.memory.wishes.block_size
    placed: list[Placement] = []
    for replica, copy in enumerate(chosen.copies):
        tokens = copy.kv_tokens // block * block  # every rank takes as many blocks as the poorest
        for j, (group, stage) in enumerate(zip(copy.groups, copy.stages, strict=True)):
            for seat in group.seats:
                placed.append(
                    Placement(
                        host=seat.host,
                        gpu=seat.gpu.index,
                        rank=len(placed),
                        weights_bytes=stage.weights,
                        kv_bytes=tokens * stage.kv_per_token,
                        overhead_bytes=stage.overhead,
                        replica=replica,
                        stage=j,
                        layers=(stage.first_layer, stage.end_layer),
                    )
                )
    return placed


def _needs_half(case: Case, chosen: Candidate) -> bool:
    old = any(seat.gpu.capability < (8, 0) for seat in chosen.seats)
    return old and case.wishes.dtype is None and case.model.precision.dtype == "bfloat16"


def _half_reason(chosen: Candidate) -> str:
    old = next(seat.gpu for seat in chosen.seats if seat.gpu.capability < (8, 0))
    return _("%(gpu)s has no bfloat16 (compute capability below 8.0), so dtype is half.") % {"gpu": old.name}


def _possible(candidate: Candidate, why_not: str) -> Alternative:
    return Alternative(Layout(*candidate.size), why_not, candidate.kv_tokens, candidate.speed)


def _refused(refusal: Refusal) -> Alternative:
    return Alternative(Layout(refusal.tensor, refusal.pipeline, 1), refusal.why)


def _obstacles(case: Case, found: Found) -> list[str]:
    """Why nothing fits: of the layout that was asked for, or of the one that came nearest."""
    wishes = case.wishes
    asked = [r for r in found.refusals if wishes.tensor in (None, r.tensor) and wishes.pipeline in (None, r.pipeline)]
    best = max(asked, key=lambda r: (r.kv_tokens, r.tensor * r.pipeline), default=None)
    offered = sum(seat.gpu.requested(seat.gpu.most_utilization(2)) for seat in case.seats)
    if case.model.weights_bytes > offered:
        return [
            ngettext(
                "The weights take %(weights)s; the GPU has %(free)s free.",
                "The weights take %(weights)s; the %(count)d GPUs have %(free)s free altogether.",
                len(case.seats),
            )
            % {"weights": gib(case.model.weights_bytes), "count": len(case.seats), "free": gib(offered)}
        ]
    return [best.why] if best else [_("No layout fits on these GPUs.")]
