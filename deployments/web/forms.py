"""The form that makes and changes a deployment. Options keep vLLM's names; what is empty is left to the plan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import msgspec
from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Count
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from controlplane.forms import DeckForm
from controlplane.problems import Problem
from deployments import aliases
from deployments.commands import checked
from deployments.hub.source import Hub, HubModel
from deployments.models import Deployment
from deployments.spec import DEMO, MOST_COPIES, NAME, RESERVED, Spec
from nodes.models import Cluster, Node
from nodes.states import NodeState

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
#: Brackets within brackets of a flag's value; deeper ones are text.
DEEPEST = 40
DTYPES = ["bfloat16", "float16", "float32"]
KV_DTYPES = ["fp8", "fp8_e4m3", "fp8_e5m2"]
#: Fields that are flags of vLLM, under its names with underscores; the layout's count only when it is set by hand.
FLAGS = ("max_model_len", "max_num_seqs", "gpu_memory_utilization", "dtype", "kv_cache_dtype")
LAYOUT = ("tensor_parallel_size", "pipeline_parallel_size")
_PORT = _("A port here is a number from 1024 to 65535.")


def _count(label: Any, name: str, hint: Any, most: int, least: int = 1) -> forms.IntegerField:
    """A field for a whole number that is a flag of vLLM and may stay empty."""
    widget = forms.NumberInput(attrs={"placeholder": hint, "inputmode": "numeric"})
    return forms.IntegerField(
        label=label, required=False, min_value=least, max_value=most, help_text=name, widget=widget)


class DeploymentForm(DeckForm):
    """All of a deployment's specification. ``spec`` is it, once the form is valid."""

    source = forms.ChoiceField(
        label=_("Model"),
        choices=[("demo", _("Demo model")), ("path", _("Path on the node")), ("hub", _("From a hub"))],
        initial="demo",
        widget=forms.RadioSelect,
    )
    path = forms.CharField(
        label=_("Path"),
        required=False,
        max_length=1024,
        widget=forms.TextInput(
            attrs={"class": "mono", "placeholder": "/data/models/Qwen2.5-14B", "spellcheck": "false"}),
        help_text=_("The directory on the node that has config.json and the weights."),
    )
    hub = forms.ChoiceField(
        label=_("Hub"), required=False, choices=[(hub.value, hub.label) for hub in Hub], initial=Hub.HUGGING_FACE.value
    )
    hub_id = forms.CharField(
        label=_("Model on the hub"),
        required=False,
        max_length=300,
        widget=forms.TextInput(
            attrs={"class": "mono", "placeholder": "Qwen/Qwen2.5-0.5B-Instruct", "spellcheck": "false"}),
        help_text=_("As its page has it; @ and a branch, tag or commit may follow. It is fetched once, then copied."),
    )
    name = forms.CharField(
        label=_("Name"), max_length=63, help_text=_("Also the model name that requests use.")
    )
    where = forms.ChoiceField(label=_("Runs on"))
    max_model_len = _count(_("Longest context"), "max-model-len", _("what fits"), 1 << 30, least=16)
    max_num_seqs = _count(_("Requests at once"), "max-num-seqs", _("as planned"), 4096)
    gpu_memory_utilization = forms.FloatField(
        label=_("GPU memory share"),
        required=False,
        min_value=0.05,
        max_value=0.99,
        help_text="gpu-memory-utilization",
        widget=forms.NumberInput(attrs={"step": "0.01", "placeholder": "0.92", "inputmode": "decimal"}),
    )
    dtype = forms.ChoiceField(
        label=_("Weights as"),
        required=False,
        choices=[("", _("as stored")), *[(name, name) for name in DTYPES]],
        help_text="dtype",
    )
    kv_cache_dtype = forms.ChoiceField(
        label=_("KV cache as"),
        required=False,
        choices=[("", _("as the weights")), *[(name, name) for name in KV_DTYPES]],
        help_text="kv-cache-dtype",
    )
    executor = forms.ChoiceField(
        label=_("Workers through"),
        required=False,
        choices=[("", _("as planned")), ("ray", _("Ray")), ("mp", _("processes of one host"))],
        help_text="distributed-executor-backend",
    )
    port = forms.IntegerField(
        label=_("Port"),
        required=False,
        min_value=1024,
        max_value=65535,
        error_messages={"min_value": _PORT, "max_value": _PORT, "invalid": _PORT},
        help_text=_("Of the model server on the node. Empty: the next free one."),
    )
    layout = forms.ChoiceField(
        label=_("Layout"),
        required=False,
        choices=[("plan", _("Chosen by the plan")), ("hand", _("By hand"))],
        initial="plan",
        widget=forms.RadioSelect,
    )
    tensor_parallel_size = _count(_("Tensor"), "", "–", 512)
    pipeline_parallel_size = _count(_("Pipeline"), "", "–", 512)
    copies = _count(_("Copies"), "", _("as planned"), MOST_COPIES)
    extra = forms.CharField(
        label=_("More vLLM flags"),
        required=False,
        max_length=20000,
        widget=forms.Textarea(
            attrs={"rows": 3, "class": "mono", "spellcheck": "false", "placeholder": "seed=1\nenable-prefix-caching"}
        ),
        help_text=_("One a line: flag=value, or only the flag to switch it on."),
    )
    note = forms.CharField(
        label=_("Why"), required=False, max_length=200, help_text=_("Kept with the revision, for the history.")
    )

    def __init__(self, *args: Any, editing: Deployment | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.editing = editing
        self.fields["where"].choices = places()  # type: ignore[attr-defined]
        if editing is not None:
            self.fields["name"].widget.attrs["readonly"] = True

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"].lower()
        if not NAME.fullmatch(name) or name in RESERVED:
            raise ValidationError(
                _("A name has small letters, digits, hyphens and underscores only, for example qwen2.5-14b.")
            )
        if self.editing is None:
            try:
                aliases.check_free(name)
            except Problem as taken:
                raise ValidationError(str(taken)) from taken
        return name

    def clean_extra(self) -> dict[str, Any]:
        try:
            return checked(parse_flags(self.cleaned_data["extra"]))
        except Problem as problem:
            raise ValidationError(str(problem)) from problem

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("source") == "path" and not str(data.get("path", "")).startswith("/"):
            self.add_error("path", _("Type the absolute path of the model's directory, from / on."))
        if data.get("source") == "hub":
            try:
                HubModel.parse(self.model)
            except Problem as problem:
                self.add_error("hub_id", str(problem))
        return data

    @property
    def model(self) -> str:
        """What the deployment's ``model`` is."""
        data = self.cleaned_data
        if data.get("source") == "hub":
            return f"{data.get('hub') or Hub.HUGGING_FACE.value}:{data.get('hub_id', '')}"
        return str(data.get("path", "")) if data.get("source") == "path" else DEMO

    @property
    def options(self) -> dict[str, Any]:
        """vLLM's flag names with their values; only what was filled in. A field goes before a line of the flags."""
        named = (*FLAGS, *(LAYOUT if self.by_hand else ()))
        typed = {name.replace("_", "-"): self.cleaned_data.get(name) for name in named}
        return {**self.cleaned_data.get("extra", {}), **{name: value for name, value in typed.items() if value}}

    @property
    def by_hand(self) -> bool:
        return self.cleaned_data.get("layout") == "hand"

    @property
    def spec(self) -> Spec:
        """What the form asks for, as far as it is filled in. Raises `Problem`."""
        data = self.cleaned_data
        kind, _colon, where = data.get("where", "node:").partition(":")
        values = {
            "name": data.get("name") or "new-deployment",
            "model": self.model,
            kind: where,
            "copies": data.get("copies") if self.by_hand else None,
            "executor": data.get("executor") or None,
            "port": data.get("port"),
            "options": self.options,
        }
        return Spec.from_dict(values)


def initial(spec: Spec) -> dict[str, Any]:
    """The form's fields for a specification: what has no field of its own becomes a line of the flags."""
    options = dict(spec.options)
    named = {name: name.replace("_", "-") for name in (*FLAGS, *LAYOUT)}
    own = {name: options.pop(flag) for name, flag in named.items() if _has_field(name, options.get(flag))}
    by_hand = spec.copies is not None or any(name in own for name in LAYOUT)
    return {
        **own,
        "name": spec.name,
        **_model_fields(spec.model),
        "where": f"cluster:{spec.cluster}" if spec.cluster else f"node:{spec.node}",
        "layout": "hand" if by_hand else "plan",
        "copies": spec.copies,
        "executor": spec.executor,
        "port": spec.port,
        "extra": written_flags(options),
    }


def _model_fields(model: str) -> dict[str, str]:
    hub = HubModel.parse(model)
    if hub is not None:
        return {"source": "hub", "hub": hub.hub.value, "hub_id": model.partition(":")[2]}
    return {"source": "demo"} if model == DEMO else {"source": "path", "path": model}


def _has_field(name: str, value: Any) -> bool:
    """Whether the field of a flag can show the value: ``4k`` and ``auto`` stand among the further flags."""
    choices = {"dtype": DTYPES, "kv_cache_dtype": KV_DTYPES}
    if name in choices:
        return value in choices[name]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (name == "gpu_memory_utilization" and isinstance(value, float))


def places() -> list[tuple[str, str]]:
    """Where a deployment can run: clusters of several nodes, and nodes that are ready and in none of those."""
    clusters = Cluster.objects.annotate(size=Count("nodes")).filter(size__gt=1).order_by("name")
    found = [(f"cluster:{one.name}", _of_cluster(one)) for one in clusters]
    ready = Node.objects.filter(state=NodeState.READY).exclude(cluster__in=[one.pk for one in clusters])
    return [*found, *((f"node:{node.name}", node.name) for node in ready)]


def _of_cluster(cluster: Cluster) -> str:
    nodes = list(cluster.nodes.all())
    gpus = sum(len(node.facts.gpus) for node in nodes)
    text = ngettext("%(name)s (%(nodes)d nodes, %(gpus)d GPU)", "%(name)s (%(nodes)d nodes, %(gpus)d GPUs)", gpus)
    return text % {"name": cluster.name, "nodes": len(nodes), "gpus": gpus}


def parse_flags(text: str) -> dict[str, Any]:
    """Names and values of flags, one a line: ``seed=1`` or ``--enforce-eager``."""
    lines = [line.partition("=") for line in map(str.strip, text.split("\n")) if line]
    return {name.strip(): _value(value.strip()) if separator else True for name, separator, value in lines}


def written_flags(options: Mapping[str, Any]) -> str:
    """Options as lines that `parse_flags` reads back."""
    return "\n".join(name if value is True else f"{name}={_text(value)}" for name, value in options.items())


def _text(value: Any) -> str:
    plain = isinstance(value, str) and _value(value.strip()) == value and "\n" not in value
    return value if plain else msgspec.json.encode(value).decode()


def _value(text: str) -> Any:
    """JSON where it looks like it, text in quotes included; else the text as it stands."""
    brackets = text[:1] in ("{", "[") and _depth(text) <= DEEPEST
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    if text in ("true", "false") or brackets or quoted or _NUMBER.fullmatch(text):
        try:
            return msgspec.json.decode(text)
        except ValueError:  # a template, or what JSON has no number for
            return text
    return text


def _depth(text: str) -> int:
    """How deep brackets nest, those within strings included: whoever walks the value does so by recursion."""
    return max(accumulate((char in "{[") - (char in "}]") for char in text), default=0)
