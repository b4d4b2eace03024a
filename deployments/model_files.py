"""What a model's files say, read on the node that has them and without a download: config.json, the weights' size.

An answer is kept with the files' mark (their times and sizes), so that typing in a form costs a look, not a reading.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from typing import Any, NamedTuple

from django.utils.translation import gettext as _

from controlplane import streams
from controlplane.problems import Problem
from deployments.hub import client
from deployments.hub.models import access
from deployments.hub.source import HubModel
from deployments.plan import BadInput, ModelConfig
from deployments.spec import DEMO
from nodes import preparation
from nodes.hosts import shared_host
from nodes.models import Node
from nodes.recipes import asset
from nodes.recipes.models import hub_path
from nodes.remote.command import python
from nodes.remote.host import ask

#: The config.json of the demo model, known before it is fetched. It has 134,515,008 parameters.
_DEMO_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rope_parameters": {"rope_theta": 100000, "rope_type": "default"},
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
#: Seconds in which an answer is not asked for again, for which it is kept at all, and a look may take.
_FRESH, _KEPT, _PATIENCE = 3, 3600, 10
_HUB_KEPT = 600


class ModelFiles(NamedTuple):
    """A model's config.json, and the bytes of its tensors where they are known."""

    config: dict[str, Any]
    tensor_bytes: int | None = None

    def model(self, overrides: Any = None) -> ModelConfig:
        """As the plan sees it, with what ``hf-overrides`` changes. Raises `Problem` where nothing can be planned."""
        config = {**self.config, **overrides} if isinstance(overrides, dict) else self.config
        try:
            return ModelConfig.from_config(config, self.tensor_bytes)
        except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise BadInput(_("Its config.json cannot be understood: %(error)r.") % {"error": error}) from error


def model_files(model: str, node: Node) -> ModelFiles:
    """The files of ``model`` (the demo, or a path on the node). Raises `Problem` when they cannot be read."""
    if model == DEMO:
        return ModelFiles(_DEMO_CONFIG)
    hub = HubModel.parse(model)
    if hub is not None:
        if hub.directory not in node.facts.models:
            return _of_hub(hub)
        model = hub_path(preparation.site(node), hub.directory)
    key = f"model-files:{node.pk}:{hashlib.sha256(model.encode()).hexdigest()[:32]}"
    kept = _kept(key)
    if time.time() - kept.get("at", 0) > _FRESH:
        answer = _look(model, node, str(kept.get("mark", "")))
        kept = {**(answer if "config" in answer else kept), "at": time.time()}
        with suppress(streams.RedisError):
            streams.client().set(key, json.dumps(kept), ex=_KEPT)
    return ModelFiles(_parsed(kept["config"], model), kept["tensor_bytes"])


def _of_hub(hub: HubModel) -> ModelFiles:
    """What the hub says of a model that is not there yet; nothing is downloaded but its config.json."""
    key = f"model-files:{hashlib.sha256(str(hub).encode()).hexdigest()[:32]}"
    kept = _kept(key)
    if not kept:
        way = access(hub.hub)
        found = client.listing(way, hub)
        kept = {"config": client.config(way, hub, found.commit), "tensor_bytes": found.tensor_bytes}
        with suppress(streams.RedisError):
            streams.client().set(key, json.dumps(kept), ex=_HUB_KEPT)
    return ModelFiles(kept["config"], kept["tensor_bytes"])


def _kept(key: str) -> dict[str, Any]:
    try:
        found = streams.client().get(key)
    except streams.RedisError:
        return {}
    return dict(json.loads(found)) if isinstance(found, bytes) else {}


def _look(model: str, node: Node, mark: str) -> dict[str, Any]:
    program = asset("model_config.py").decode()
    result = ask(shared_host(node), python("python3", program, model, mark), timeout=_PATIENCE)
    try:
        answer = json.loads(result.text.strip().rpartition("\n")[2])
        error = answer.get("error")
    except (ValueError, AttributeError):
        answer, error = {}, result.last_words()
    if error or "mark" not in answer:
        raise _missing(model, node, str(error or ""))
    return dict(answer)


def _missing(model: str, node: Node, error: str) -> Problem:
    names = {"model": model, "node": node.name}
    if error == "no directory":
        return Problem(
            _("There is no directory %(model)s on %(node)s.") % names, _("Copy the model there, or correct the path."))
    if error == "too large":
        return Problem(_("%(model)s/config.json on %(node)s is too large for a model's configuration.") % names)
    return Problem(
        _("%(model)s/config.json on %(node)s cannot be read: %(why)s.") % {**names, "why": error[:200]},
        _("A model is a directory with config.json, the tokenizer and the weights."),
    )


def _parsed(text: str, model: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem(_("%(model)s/config.json is not valid JSON.") % {"model": model}) from error
    if not isinstance(config, dict):
        raise Problem(_("%(model)s/config.json holds no JSON object.") % {"model": model})
    return config
