"""The form that makes a deployment. vLLM's options keep vLLM's own names; what is empty is left to vLLM."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

import msgspec
from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from controlplane.forms import DeckForm
from controlplane.problems import Problem
from deployments.commands import checked
from deployments.models import Deployment
from nodes.models import Node
from nodes.states import NodeState

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
#: Words that are pages beside a deployment's own.
RESERVED = frozenset({"new"})
#: Brackets within brackets of a flag's value; deeper ones are text.
DEEPEST = 40
DTYPES = ["bfloat16", "float16", "float32"]


class DeploymentForm(DeckForm):
    """Name, node, model and options of a deployment."""

    source = forms.ChoiceField(
        label=_("Model"),
        choices=[("demo", _("Demo model")), ("path", _("Path on the node"))],
        initial="demo",
        widget=forms.RadioSelect,
    )
    path = forms.CharField(
        label=_("Path"),
        required=False,
        max_length=1024,
        widget=forms.TextInput(attrs={"class": "mono", "placeholder": "/data/models/Qwen2.5-14B"}),
        help_text=_("The directory on the node that has config.json and the weights."),
    )
    name = forms.CharField(
        label=_("Name"), max_length=63, help_text=_("Also the model name that requests use.")
    )
    node = forms.ModelChoiceField(
        label=_("Node"), queryset=Node.objects.filter(state=NodeState.READY), empty_label=None
    )
    port = forms.IntegerField(
        label=_("Port"),
        required=False,
        min_value=1024,
        max_value=65535,
        error_messages={
            "min_value": _("A port here is a number from 1024 to 65535."),
            "max_value": _("A port here is a number from 1024 to 65535."),
            "invalid": _("A port here is a number from 1024 to 65535."),
        },
        help_text=_("Of the model server on the node. Empty: the next free one."),
    )
    max_model_len = forms.IntegerField(
        label=_("Longest context"),
        required=False,
        min_value=16,
        help_text="max-model-len",
        widget=forms.NumberInput(attrs={"placeholder": _("what the model allows")}),
    )
    max_num_seqs = forms.IntegerField(
        label=_("Requests at once"),
        required=False,
        min_value=1,
        max_value=4096,
        help_text="max-num-seqs",
        widget=forms.NumberInput(attrs={"placeholder": _("vLLM's choice")}),
    )
    gpu_memory_utilization = forms.FloatField(
        label=_("GPU memory share"),
        required=False,
        min_value=0.05,
        max_value=0.99,
        help_text="gpu-memory-utilization",
        widget=forms.NumberInput(attrs={"step": "0.01", "placeholder": "0.9"}),
    )
    dtype = forms.ChoiceField(
        label=_("Weights as"),
        required=False,
        choices=[("", _("as stored")), *[(name, name) for name in DTYPES]],
        help_text="dtype",
    )
    extra = forms.CharField(
        label=_("More vLLM flags"),
        required=False,
        max_length=20000,
        widget=forms.Textarea(
            attrs={"rows": 3, "class": "mono", "spellcheck": "false", "placeholder": "seed=1\nenforce-eager"}
        ),
        help_text=_("One a line: flag=value, or only the flag to switch it on."),
    )

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"].lower()
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise ValidationError(
                _("A name has small letters, digits, hyphens and underscores only, for example qwen2.5-14b.")
            )
        if Deployment.objects.filter(name=name).exists():
            said = _("A deployment named %(name)s exists already. Choose another name.")
            raise ValidationError(said % {"name": name})
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
        return data

    @property
    def model(self) -> str:
        return Deployment.DEMO if self.cleaned_data["source"] == "demo" else str(self.cleaned_data["path"])

    @property
    def options(self) -> dict[str, Any]:
        """vLLM's flag names with their values; only what was filled in."""
        named = ("max_model_len", "max_num_seqs", "gpu_memory_utilization", "dtype")
        typed = {name.replace("_", "-"): self.cleaned_data.get(name) for name in named}
        return {**self.cleaned_data["extra"], **{name: value for name, value in typed.items() if value}}


def parse_flags(text: str) -> dict[str, Any]:
    """Names and values of flags, one a line: ``seed=1`` or ``--enforce-eager``."""
    lines = [line.partition("=") for line in map(str.strip, text.splitlines()) if line]
    return {name.strip(): _value(value.strip()) if separator else True for name, separator, value in lines}


def _value(text: str) -> Any:
    if text in ("true", "false") or (text[:1] in "{[" and _depth(text) <= DEEPEST) or _NUMBER.fullmatch(text):
        try:
            return msgspec.json.decode(text)
        except ValueError:  # a template, or what JSON has no number for
            return text
    return text


def _depth(text: str) -> int:
    """How deep brackets nest, those within strings included: whoever walks the value does so by recursion."""
    return max(accumulate((char in "{[") - (char in "}]") for char in text), default=0)
