"""The forms of clusters: which nodes, which is the head, over which network, with what resources of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from controlplane.forms import DeckForm
from nodes.clusters.address import as_subnet
from nodes.clusters.stories import RESERVED
from nodes.models import Cluster, Node
from nodes.states import NodeState

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")
_INTERFACE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")
_LINE = re.compile(r"(?P<node>[A-Za-z0-9-]+)\s*:\s*(?P<name>[A-Za-z][A-Za-z0-9._-]*)\s*=\s*(?P<amount>\d+(\.\d{1,4})?)")
#: What Ray counts by itself.
_RAYS_OWN = frozenset({"CPU", "GPU", "memory", "object_store_memory", "bundle"})
_PORT = _("A port here is a number from 1024 to 65000.")


class NetworkForm(DeckForm):
    """What may be changed of a cluster while it is stopped."""

    network = forms.CharField(
        label=_("Network"),
        required=False,
        max_length=64,
        widget=forms.TextInput(attrs={"class": "mono", "placeholder": "10.0.0.0/24", "list": "networks"}),
        help_text=_("A subnet or an interface that all nodes share. Empty: the address each is reached by."),
    )
    port_base = forms.IntegerField(
        label=_("First port"),
        required=False,
        min_value=1024,
        max_value=65000,
        error_messages={"min_value": _PORT, "max_value": _PORT, "invalid": _PORT},
        help_text=_("Ray uses the 340 ports from this one on, the same on every node. Empty: PORT_BASE."),
    )
    resources = forms.CharField(
        label=_("Resources of your own"),
        required=False,
        max_length=4000,
        widget=forms.Textarea(attrs={"rows": 3, "class": "mono", "spellcheck": "false",
                                     "placeholder": "te1: fast-disk=1"}),
        help_text=_("One a line: node: name=amount. Ray counts them beside GPUs and processors."),
    )  # fmt: skip

    def clean_network(self) -> str:
        network: str = self.cleaned_data["network"].strip()
        if network and as_subnet(network) is None and not _INTERFACE.fullmatch(network):
            raise ValidationError(_("This is neither a subnet, as 10.0.0.0/24, nor the name of an interface, as ens3."))
        return network

    def clean_resources(self) -> Mapping[str, dict[str, float]]:
        """Node name → what it offers. Ray takes whole numbers, and parts of one."""
        found: dict[str, dict[str, float]] = {}
        for line in filter(None, map(str.strip, self.cleaned_data["resources"].splitlines())):
            read = _LINE.fullmatch(line)
            whole = read is not None and (float(read["amount"]) <= 1 or float(read["amount"]).is_integer())
            if read is None or not whole or read["name"] in _RAYS_OWN or read["name"].startswith("node"):
                said = _("“%(line)s” is not understood. Write it as te1: fast-disk=1; Ray counts CPU and GPU itself.")
                raise ValidationError(said % {"line": line[:80]})
            found.setdefault(read["node"], {})[read["name"]] = float(read["amount"])
        return found


class ClusterForm(NetworkForm):
    """A new cluster."""

    name = forms.CharField(label=_("Name"), max_length=63, widget=forms.TextInput(attrs={"placeholder": "lab"}))
    nodes = forms.ModelMultipleChoiceField(
        Node.objects.filter(state=NodeState.READY),
        to_field_name="name",
        error_messages={"required": _("Choose at least one node.")},
    )
    head = forms.ModelChoiceField(
        Node.objects.filter(state=NodeState.READY), to_field_name="name", required=False, empty_label=None
    )

    field_order = ("name", "nodes", "head", "network", "port_base", "resources")

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise ValidationError(
                _("A name has letters, digits and hyphens only, with a letter or digit at both ends."))
        if Cluster.objects.filter(name=name).exists():
            said = _("A cluster named %(name)s exists already. Choose another name.")
            raise ValidationError(said % {"name": name})
        return name

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        nodes = list(data.get("nodes") or ())
        if nodes and data.get("head") is None:
            data["head"] = nodes[0]
        chosen = {node.name for node in nodes} | {data["head"].name if data.get("head") else ""}
        unknown = sorted(set(data.get("resources") or {}) - chosen)
        if nodes and unknown:
            said = _("%(node)s is not one of the nodes chosen.")
            self.add_error("resources", said % {"node": unknown[0]})
        return data


def as_lines(nodes: list[Node]) -> str:
    """The resources of these nodes, as the form takes them."""
    return "\n".join(
        f"{node.name}: {name}={amount:g}" for node in nodes for name, amount in sorted(node.ray_resources.items()))
