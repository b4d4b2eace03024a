"""What a deployment is to be, as one value: a form fills it in, a file says it, a revision keeps it. Pure.

The YAML of `manage.py apply`::

    name: qwen2.5-14b
    model: /data/models/Qwen2.5-14B     # or hf:Qwen/Qwen2.5-14B, ms:…, demo
    cluster: four-a10                   # or node: te1
    copies: 1                           # left out: as planned
    executor: ray                       # or mp; left out: as planned
    port: 20940                         # left out: the next free one
    options:                            # vLLM's own flag names
      max-model-len: 32768
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Self

import yaml
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments.commands import checked
from deployments.hub.source import HubModel

DEMO = "demo"
EXECUTORS = ("ray", "mp")
MOST_COPIES = 64
#: Words that are pages beside a deployment's own.
RESERVED = frozenset({"new", "plan", "import", "flags"})
NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
#: Bytes of a file, and deployments in it.
LARGEST_FILE, MOST_DOCUMENTS = 256 * 1024, 100


@dataclass(frozen=True)
class Spec:
    """The whole specification of a deployment. What is None or empty is left to the plan.

    It runs on ``cluster``, or on the single ``node``, both by name. ``options`` are vLLM's own flag names and values;
    tensor-parallel-size and pipeline-parallel-size among them are a layout that is wished.
    """

    name: str
    model: str
    cluster: str = ""
    node: str = ""
    copies: int | None = None
    executor: str = ""
    port: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """A specification out of plain values, every one of them looked at. Raises `Problem` in one sentence."""
        if not isinstance(data, dict):
            said = _("A deployment is written as names with values, such as “name: qwen2.5-14b”.")
            raise Problem(said, _the_fields())
        _only_known(data)
        spec = cls(
            name=_name(data.get("name")),
            model=_model(data.get("model")),
            cluster=_text(data, "cluster"),
            node=_text(data, "node"),
            copies=_whole(data, "copies", 1, MOST_COPIES),
            executor=_text(data, "executor"),
            port=_whole(data, "port", 1024, 65535),
            options=_options(data.get("options")),
        )
        _check_where(spec)
        if spec.executor not in ("", *EXECUTORS):
            raise Problem(
                _("%(name)s: the executor is ray or mp, not %(value)s.")
                % {"name": spec.name, "value": spec.executor[:80]},
                _("Leave it out to have the plan choose."),
            )
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Plain values, only those that are set; `from_dict` reads them back."""
        values = {name: getattr(self, name) for name in _FIELDS}
        values["options"] = dict(sorted(self.options.items()))
        return {name: value for name, value in values.items() if value not in (None, "", {})}

    def to_yaml(self) -> str:
        """The file that `manage.py apply` takes."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)

    @property
    def where(self) -> str:
        """The name of the cluster or node it runs on."""
        return self.cluster or self.node


_FIELDS = ("name", "model", "cluster", "node", "copies", "executor", "port", "options")
_OTHER_WORDS = {"path": "model", "replicas": "copies", "args": "options", "flags": "options", "host": "node"}


def _the_fields() -> str:
    return _("The fields are: %(fields)s.") % {"fields": ", ".join(_FIELDS)}


def _only_known(data: Mapping[Any, Any]) -> None:
    for key in data:
        if key not in _FIELDS:
            raise Problem(
                _("“%(key)s” is not a field of a deployment.") % {"key": str(key)[:80]},
                did_you_mean(str(key), _FIELDS, _OTHER_WORDS) or _the_fields(),
            )


def did_you_mean(word: str, known: Iterable[str], others: Mapping[str, str] | None = None) -> str:
    """The question that names what was probably meant; empty where nothing is near."""
    near = (others or {}).get(word) or next(iter(get_close_matches(word, list(known), n=1, cutoff=0.7)), "")
    return _("Did you mean %(word)s?") % {"word": near} if near else ""


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value) or value in RESERVED:
        raise Problem(
            _("“%(name)s” cannot be a deployment's name.") % {"name": str(value)[:80]},
            _("A name has small letters, digits, hyphens and underscores only, for example qwen2.5-14b."),
        )
    return value


def _model(value: Any) -> str:
    """The demo model, a path on the nodes, or a hub's model as `HubModel` writes it."""
    if not isinstance(value, str) or not value or len(value) > 1024:
        raise Problem(_("A deployment needs a model: a path on the nodes, one of a hub, or demo."), _the_fields())
    if value != DEMO and not value.startswith("/") and HubModel.parse(value) is None:
        raise Problem(
            _("The model %(model)s is neither demo, nor an absolute path, nor one of a hub.") % {"model": value[:200]},
            _("Write it as /data/models/name, or as hf:Qwen/Qwen2.5-0.5B-Instruct."),
        )
    return value


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 63:
        raise Problem(
            _("%(key)s must be a short text, not %(value)s.") % {"key": key, "value": str(value)[:80]},
            _("Put it in quotes where it looks like a number."),
        )
    return value


def _whole(data: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Problem(
            _("%(key)s must be a whole number from %(least)d to %(most)d, not %(value)s.")
            % {"key": key, "least": least, "most": most, "value": str(value)[:80]}
        )
    return value


def _options(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Problem(_("options must be names of vLLM's flags with values, such as “max-model-len: 4096”."))
    options = checked(value)
    for name, item in options.items():
        try:
            json.dumps(item, allow_nan=False)
        except (TypeError, ValueError) as error:  # a date, a set, or what JSON has no number for
            raise Problem(
                _("The value of %(name)s cannot be passed to vLLM.") % {"name": name},
                _("Put it in quotes if it is meant as text."),
            ) from error
    return options


def _check_where(spec: Spec) -> None:
    if bool(spec.cluster) == bool(spec.node):
        raise Problem(
            _("%(name)s needs a place to run: a cluster or a node, one of the two.") % {"name": spec.name},
            _("Write “node: te1” with the name of a node, or “cluster: …” with that of a cluster."),
        )


# --- YAML ---


class _Loader(yaml.SafeLoader):
    """YAML's plain values only; no anchors, which can make a small file huge, and no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(_("anchors and aliases are not taken here"))
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _value in node.value]
        twice = [key for key in keys if isinstance(key, list | dict) or keys.count(key) > 1]
        if twice:
            raise yaml.YAMLError(_("“%(key)s” stands there twice") % {"key": str(twice[0])[:80]})
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Without anchors, whatever stands in it twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def from_yaml(text: str) -> list[Spec]:
    """The deployments of a file, one a document. Raises `Problem` in one sentence that says what to correct."""
    if len(text.encode()) > LARGEST_FILE:
        raise Problem(_("The file is larger than %(size)d KiB.") % {"size": LARGEST_FILE // 1024})
    try:
        found = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise Problem(_("This is not YAML that can be read: %(why)s.") % {"why": _why(error)}) from error
    except RecursionError as error:
        raise Problem(_("The file's values nest too deep.")) from error
    if not found or len(found) > MOST_DOCUMENTS:
        raise Problem(_("The file describes no deployment.") if not found else _("The file has too many deployments."))
    specs = [Spec.from_dict(document) for document in found]
    twice = [spec.name for i, spec in enumerate(specs) if spec.name in {other.name for other in specs[:i]}]
    if twice:
        raise Problem(_("The file describes %(name)s twice.") % {"name": twice[0]})
    return specs


def _why(error: Exception) -> str:
    """The parser's reason on one line, with the place where it has one."""
    mark = getattr(error, "problem_mark", None)
    said = str(getattr(error, "problem", None) or error).strip().rstrip(".").replace("\n", " ")[:200]
    return _("line %(line)d: %(said)s") % {"line": mark.line + 1, "said": said} if mark else said
