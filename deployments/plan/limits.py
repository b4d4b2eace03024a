"""Wishes that no amount of memory makes possible, and GPUs that cannot run the model at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from django.utils.translation import gettext as _

from deployments.plan.hosts import HostSpec
from deployments.plan.layouts import tensor_problem
from deployments.plan.model import ModelConfig
from deployments.plan.wishes import Wishes
from deployments.plan.words import count


def impossible(model: ModelConfig, hosts: Sequence[HostSpec], wishes: Wishes) -> list[str]:
    """One sentence for each wish that contradicts the model or the number of GPUs."""
    problems = []
    total = sum(len(host.gpus) for host in hosts)
    tensor, pipeline, replicas = wishes.tensor or 1, wishes.pipeline or 1, wishes.replicas or 1
    if why := tensor_problem(model, tensor, wishes):
        problems.append(why)
    if pipeline > len(model.layers):
        problems.append(
            _("%(layers)d layers cannot be cut into %(pipeline)d stages.")
            % {"layers": len(model.layers), "pipeline": pipeline}
        )
    if tensor * pipeline * replicas > total > 0:
        problems.append(
            _("TP=%(tensor)d × PP=%(pipeline)d × %(replicas)d copies needs %(needed)d GPUs; there are %(total)d.")
            % {
                "tensor": tensor,
                "pipeline": pipeline,
                "replicas": replicas,
                "needed": tensor * pipeline * replicas,
                "total": total,
            }
        )
    if model.longest and (wishes.max_model_len or 0) > model.longest:
        problems.append(
            _("The model allows %(longest)s tokens of context; %(wished)s were asked for.")
            % {"longest": count(model.longest), "wished": count(wishes.max_model_len or 0)}
        )
    return problems


def able(model: ModelConfig, hosts: Sequence[HostSpec], wishes: Wishes) -> tuple[list[HostSpec], list[str]]:
    """The hosts with only the GPUs that can run the model, and a sentence for each kind that cannot."""
    notes: dict[str, str] = {}
    kept = []
    for host in hosts:
        gpus = []
        for gpu in host.gpus:
            if why := _incapable(model, gpu.capability, wishes):
                notes[gpu.name] = why % {"gpu": gpu.name}
            else:
                gpus.append(gpu)
        kept.append(replace(host, gpus=tuple(gpus)))
    return kept, list(notes.values())


def _incapable(model: ModelConfig, capability: tuple[int, int], wishes: Wishes) -> str:
    if wishes.dtype == "bfloat16" and capability < (8, 0):
        return _("%(gpu)s is left out: bfloat16 needs compute capability 8.0 or more.")
    if model.precision.quantised == "fp8" and capability < (8, 0):
        return _("%(gpu)s is left out: fp8 weights need compute capability 8.0 or more.")
    return ""
