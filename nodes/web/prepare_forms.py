"""The form that asks how nodes are to be prepared. Each message says what is wrong with the field and what to type."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from controlplane.forms import DeckForm
from nodes.options import Options

_HIDDEN = "•••"
_PYTHON = re.compile(r"3\.(1[1-4])(\.\d{1,2})?")


class PrepareForm(DeckForm):
    """How the Python environment is made, where packages come from, and which optional steps there are."""

    kind = forms.ChoiceField(
        label=_("Python environment"),
        choices=[("venv", _("venv")), ("conda", _("conda")), ("existing", _("existing"))],
        widget=forms.RadioSelect,
    )
    conda = forms.CharField(
        label=_("conda's directory"), required=False, max_length=400,
        widget=forms.TextInput(attrs={"placeholder": "/data/miniconda3", "class": "mono"}),
        help_text=_("Where conda is, or is to be installed. Empty: in Quarterdeck's directory."),
    )  # fmt: skip
    installer = forms.CharField(
        label=_("conda's installer"), required=False, max_length=1000, widget=forms.TextInput(attrs={"class": "mono"}),
        help_text=_("A URL, or a path on the server, of Miniconda's or Miniforge's .sh file. Empty where conda is."),
    )  # fmt: skip
    python = forms.CharField(
        label=_("Python version"), required=False, max_length=10, widget=forms.TextInput(attrs={"placeholder": "3.12"}),
        help_text=_("What conda is asked for; in a cluster, what its first node has."),
    )  # fmt: skip
    environment = forms.CharField(
        label=_("Environment"), required=False, max_length=400,
        widget=forms.TextInput(attrs={"placeholder": "/data/miniconda3/envs/vllm", "class": "mono"}),
        help_text=_("Its directory, with bin/python, vLLM and Ray in it. It is used as it is, and never changed."),
    )  # fmt: skip
    index = forms.CharField(
        label=_("Package index or mirror"), required=False, max_length=1000,
        widget=forms.TextInput(attrs={"placeholder": "https://mirror.example/simple", "class": "mono"}),
        help_text=_("Empty: what pip on the server is configured for. A password in it is kept encrypted."),
    )  # fmt: skip
    extra_index = forms.CharField(
        label=_("Extra index"), required=False, max_length=1000, widget=forms.TextInput(attrs={"class": "mono"}),
        help_text=_("Asked besides the other one."),
    )  # fmt: skip
    wheelhouse = forms.BooleanField(
        label=_("From the wheelhouse"), required=False,
        help_text=_("For servers without a network: wheels that Quarterdeck keeps are pushed there over SFTP."),
    )  # fmt: skip
    base = forms.BooleanField(
        label=_("Base packages"), required=False,
        help_text=_("A C compiler, git, curl, rsync, and Python's parts, with apt or dnf. Needs root."),
    )  # fmt: skip
    hostname = forms.BooleanField(
        label=_("Host name"), required=False, help_text=_("The server calls itself what it is called here. Needs root.")
    )
    hosts = forms.BooleanField(
        label=_("Names in /etc/hosts"), required=False,
        help_text=_("The nodes of its cluster know each other by name. Needs root."),
    )  # fmt: skip
    trust = forms.BooleanField(
        label=_("Trust among the nodes"), required=False,
        help_text=_("The nodes of its cluster sign in to each other with a key of the cluster's own."),
    )  # fmt: skip

    def __init__(self, data: Any = None, *, known: Options) -> None:
        """``known`` is how it was done last: shown again, passwords in addresses hidden, and kept where left so."""
        shown = {item.name: getattr(known, item.name) for item in fields(known)}
        shown |= {name: _shown(shown[name]) for name in ("index", "extra_index")}
        places = {"conda": known.path if known.kind == "conda" else "",
                  "environment": known.path if known.kind == "existing" else ""}  # fmt: skip
        super().__init__(data, initial={**shown, **places})
        self.known = known

    def clean_conda(self) -> str:
        return _absolute(self.cleaned_data["conda"])

    def clean_environment(self) -> str:
        return _absolute(self.cleaned_data["environment"])

    def clean_installer(self) -> str:
        given: str = self.cleaned_data["installer"]
        if given and not given.startswith(("/", "https://", "http://")):
            raise ValidationError(_("Give a URL, or a path from the root on, as in /data/Miniconda3.sh."))
        return given

    def clean_python(self) -> str:
        version: str = self.cleaned_data["python"]
        if version and not _PYTHON.fullmatch(version):
            raise ValidationError(_("Give a version from 3.11 to 3.14, as 3.12 or 3.12.4."))
        return version

    def clean_index(self) -> str:
        return self._address("index")

    def clean_extra_index(self) -> str:
        return self._address("extra_index")

    def _address(self, name: str) -> str:
        given, kept = self.cleaned_data[name], getattr(self.known, name)
        if kept and given == _shown(kept):
            return str(kept)
        if given and (not given.startswith(("https://", "http://", "file:///")) or _HIDDEN in given):
            raise ValidationError(_("Give the whole address of the index, as in https://mirror.example/simple."))
        return str(given)

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("kind") == "existing" and "environment" in data and not data["environment"]:
            self.add_error("environment", _("Type the directory of the environment, or choose another kind above."))
        return data

    def options(self) -> Options:
        """The answers, once the form is valid; only those that belong to the chosen kind."""
        data = self.cleaned_data
        same = ("kind", "index", "extra_index", "wheelhouse", "base", "hostname", "hosts", "trust")
        path = {"conda": data["conda"], "existing": data["environment"]}.get(data["kind"], "")
        asked = {name: data[name] for name in ("installer", "python")} if data["kind"] == "conda" else {}
        return Options(path=path, **asked, **{name: data[name] for name in same})


def _absolute(path: str) -> str:
    if path and (not path.startswith("/") or not path.isprintable()):
        raise ValidationError(_("Give a path from the root on, as in /data/miniconda3."))
    return path.rstrip("/") if path != "/" else path


def _shown(address: str) -> str:
    """The address with the password in it hidden."""
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=f"{_HIDDEN}@{parts.netloc.rpartition('@')[2]}"))
