"""How vLLM is started: the options as a file, the rest as environment. Pure.

vLLM's ``--config`` takes YAML with the names of its options as keys, so nothing that a person typed is part
of a command line. On nodes without a GPU a few options get defaults that fit them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from controlplane.secrets import Secret
from deployments.plan.cpu import CACHE, SEQUENCES
from nodes.facts import Facts
from nodes.recipes import Site
from nodes.recipes.ray import PortPlan, client_environment, worker_environment
from nodes.remote.command import Command, script

#: Options that Quarterdeck sets itself, from the deployment.
OWN_OPTIONS = frozenset({
    "model", "model-tag", "served-model-name", "host", "port", "uds", "api-key", "config", "headless",
    "distributed-executor-backend", "nnodes", "node-rank", "master-addr", "master-port",
})
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LIKE_AN_OPTION = re.compile(r"-(?![\d.])")  # vLLM would read such a value as the next option
_LONGEST_VALUE = 20_000
_SERVE = 'exec "$1" serve --config "$QD_JOB/serve.yaml"'

_CPU_DEFAULTS = {"max-num-seqs": SEQUENCES, "kv-cache-memory-bytes": CACHE}


@dataclass(frozen=True)
class Workers:
    """How a server's workers come to be: by Ray on the whole cluster, or ("mp") on these GPUs of its own host."""

    executor: str = "ray"
    gpus: Sequence[int] = ()  # empty: all that are free; Ray chooses by itself
    environment: Mapping[str, str] = field(default_factory=dict)  # what the plan gives every worker


BY_RAY = Workers()


def serve(
    *,
    site: Site,
    facts: Facts,
    plan: PortPlan,
    address: str,
    name: str,
    model: str,
    port: int,
    api_key: Secret,
    options: Mapping[str, Any],
    workers: Workers = BY_RAY,
) -> Command:
    """Serve the model at path ``model`` under ``name``. Runs until it is stopped.

    ``address`` is the node's own address, where the server listens; ``options`` are vLLM's own flag names and
    values. Raises `Problem` for options that cannot be passed on.
    """
    config = {
        "model": model,
        "served-model-name": [name],
        "host": address,
        "port": port,
        "distributed-executor-backend": workers.executor,
        **engine_options(facts, checked(options)),
    }
    env = {
        **worker_environment(facts, site, address),
        **(client_environment(site, plan, address) if workers.executor == "ray" else {}),
        **_ENGINE_ENVIRONMENT[facts.engine],
        **_ENVIRONMENT,
        **({"CUDA_VISIBLE_DEVICES": ",".join(map(str, workers.gpus))} if workers.gpus else {}),
        **workers.environment,
        "VLLM_API_KEY": api_key,
    }
    written = yaml.safe_dump(config, sort_keys=False).encode("ascii")
    return script(_SERVE, f"{site.environment}/bin/vllm", env=env).with_files({"serve.yaml": written})


_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Lines of Ray's workers as they are: not left out where they are alike, and without colours.
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
}
_ENGINE_ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    # Binding threads to NUMA nodes fails as soon as there are more workers than nodes.
    "cpu": {"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    # FlashInfer's sampler is compiled when it is first used, by an nvcc that few hosts have.
    "cuda": {"VLLM_USE_FLASHINFER_SAMPLER": "0"},
}


def engine_options(facts: Facts, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """``options`` with what the node's engine needs besides, where they do not say otherwise."""
    if facts.engine == "cuda":
        return options
    defaults: dict[str, Any] = dict(_CPU_DEFAULTS)
    if "gpu-memory-utilization" in options:
        del defaults["kv-cache-memory-bytes"]
    if "compilation-config" not in options:
        # Eager is ready soonest, but skips the warm-up in which the buffers between pipeline stages are made.
        pipeline = str(options.get("pipeline-parallel-size", 1)) != "1"
        plain = {"compilation-config": {"mode": 2, "backend": "eager"}}
        defaults |= plain if pipeline else {"enforce-eager": True}
    return {**defaults, **options}


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under vLLM's names for them. Raises `Problem` for one that cannot be passed on."""
    result: dict[str, Any] = {}
    for typed, value in options.items():
        name = typed.strip().removeprefix("--").replace("_", "-").lower()
        if not _NAME.fullmatch(name):
            raise Problem(
                _("“%(name)s” is not the name of a vLLM option.") % {"name": typed[:80]},
                _("Write it as vLLM does, for example max-model-len."),
            )
        if name in OWN_OPTIONS:
            raise Problem(
                _("The option %(name)s is set by Quarterdeck, from the deployment.") % {"name": name},
                _("Leave it out."),
            )
        if name in result:
            raise Problem(_("The option %(name)s is given twice.") % {"name": name}, _("Leave one out."))
        _check_value(name, value)
        result[name] = value
    return result


def _check_value(name: str, value: Any) -> None:
    items = value if isinstance(value, list) else [value]
    dashes = any(isinstance(item, str) and _LIKE_AN_OPTION.match(item) for item in items)
    known = all(isinstance(item, bool | int | float | str | dict) for item in items)
    if dashes or not known or len(repr(value)) > _LONGEST_VALUE:
        raise Problem(
            _("The value of %(name)s cannot be passed to vLLM.") % {"name": name},
            _("Give a number, a text that does not begin with a dash, true, false, a list or an object."),
        )
