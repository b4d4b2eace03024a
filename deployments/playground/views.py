"""The playground: a chat with deployments, through the same gateway and the same door as any program."""

from __future__ import annotations

from dataclasses import dataclass

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from controlplane.roles import SignedIn
from deployments.gateway.keys import session_token
from deployments.models import Deployment
from deployments.states import SERVING
from nodes.models import Node

MOST_COLUMNS = 4


@dataclass(frozen=True)
class Column:
    """One deployment that is asked, and those its place may be given to."""

    deployment: Deployment
    choices: list[Deployment]

    @property
    def serves(self) -> bool:
        return self.deployment.state in SERVING

    @property
    def has_chat_template(self) -> bool:
        """False for a base model, as far as it was measured: what it is sent is a completion."""
        measured = self.deployment.replica.measured if self.deployment.replica else {}
        return measured.get("chat_template") is not False


@require_safe
def playground(request: SignedIn) -> HttpResponse:
    everything = Deployment.objects.prefetch_related("replicas")
    found = sorted(everything, key=lambda deployment: deployment.state not in SERVING)
    columns = chosen(found, request.GET.getlist("model"))
    shown = {column.deployment.pk for column in columns}
    page = {
        "deployments": found,
        "columns": columns,
        "next": next((one for one in found if one.pk not in shown), None) if len(columns) < MOST_COLUMNS else None,
        "serving": SERVING,
        "any_node": Node.objects.exists(),
        "token": session_token(request.user),
        "base_url": request.build_absolute_uri("/v1"),
    }
    return render(request, "playground.html", page)


def chosen(found: list[Deployment], names: list[str]) -> list[Column]:
    """A column for each name that exists, each once and at most four; the first deployment when there is none."""
    by_name = {deployment.name: deployment for deployment in found}
    wanted = [by_name[name] for name in dict.fromkeys(names) if name in by_name][:MOST_COLUMNS] or found[:1]
    return [Column(one, [other for other in found if other is one or other not in wanted]) for one in wanted]
