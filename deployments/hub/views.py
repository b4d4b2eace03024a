"""The page of models: which node has which, and where hubs are reached."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_POST, require_safe

from controlplane.forms import DeckForm
from controlplane.problems import Problem
from controlplane.roles import ADMIN, SignedIn, role_required
from controlplane.views import go
from deployments.hub.models import HubAccess, default_endpoint
from deployments.hub.source import Hub
from nodes.models import Node


class HubForm(DeckForm):
    """Address and token of one hub. The token is never written back into the page: empty leaves it as it is."""

    endpoint = forms.CharField(
        label=gettext_lazy("Address"), required=False, max_length=300,
        widget=forms.TextInput(attrs={"class": "mono", "inputmode": "url"}),
        help_text=gettext_lazy("Of the hub or a mirror that speaks its API. Empty: the default."),
    )
    token = forms.CharField(
        label=gettext_lazy("Token"), required=False, max_length=500,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text=gettext_lazy("For private and gated models. Kept encrypted; empty leaves it as it is."),
    )
    forget = forms.BooleanField(label=gettext_lazy("Forget the token"), required=False)

    def __init__(self, hub: Hub, data: Any = None) -> None:
        found = HubAccess.objects.filter(hub=hub).first()
        super().__init__(data, initial={"endpoint": found.endpoint if found else ""}, prefix=hub.value)
        self.hub, self.has_token = hub, bool(found and found.token)
        self.fields["endpoint"].widget.attrs["placeholder"] = default_endpoint(hub)

    def clean_endpoint(self) -> str:
        endpoint: str = self.cleaned_data["endpoint"].rstrip("/")
        parts = urlsplit(endpoint)
        plain = parts.scheme in ("http", "https") and parts.hostname and not parts.query and "@" not in endpoint
        if endpoint and not plain:
            raise ValidationError(_("Type an address such as https://mirror.example.org, without user and query."))
        return endpoint

    def keep(self) -> None:
        values: dict[str, Any] = {"endpoint": self.cleaned_data["endpoint"]}
        if self.cleaned_data["forget"] or self.cleaned_data["token"]:
            values["token"] = "" if self.cleaned_data["forget"] else self.cleaned_data["token"]
        HubAccess.objects.update_or_create(hub=self.hub, defaults=values)


@require_safe
def models(request: SignedIn) -> HttpResponse:
    return _page(request, [HubForm(hub) for hub in Hub])


@require_POST
@role_required(ADMIN)
def hub(request: SignedIn, name: str) -> HttpResponse:
    """Keep a hub's address and token."""
    if name not in set(Hub):
        raise Problem(_("There is no hub of this name."), _("Reload the page."))
    form = HubForm(Hub(name), request.POST)
    if not form.is_valid():
        return _page(request, [form if other.value == name else HubForm(other) for other in Hub], status=409)
    form.keep()
    messages.success(request, _("Kept for %(hub)s.") % {"hub": form.hub.label})
    return go(request, "models")


def _page(request: SignedIn, hubs: list[HubForm], status: int = 200) -> HttpResponse:
    nodes = list(Node.objects.exclude(facts_at=None))
    return render(request, "models.html", {"models": presence(nodes), "hubs": hubs}, status=status)


def presence(nodes: Iterable[Node]) -> list[tuple[str, list[Node]]]:
    """Each model directory that Quarterdeck keeps, and the nodes that had it when they were last looked at."""
    found = defaultdict(list)
    for node in nodes:
        for name in node.facts.models:
            found[name].append(node)
    return sorted(found.items())
