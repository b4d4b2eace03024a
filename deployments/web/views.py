"""Pages of deployments: list, detail, and start, stop, delete. They call the stories, never a host."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from controlplane.roles import ADMIN, OPERATOR, SignedIn, role_required
from controlplane.views import go
from deployments.models import Deployment
from deployments.rollout import effects, exchange, prediction
from deployments.rollout import stories as rollout
from deployments.states import AT_REST, SERVING
from deployments.web import plan_page, server_page
from nodes.models import Node, Run
from nodes.web.pages import sources, stories


def _all() -> list[Deployment]:
    return list(Deployment.objects.select_related("cluster__head").prefetch_related("replicas"))


@require_safe
def deployments(request: HttpRequest) -> HttpResponse:
    page = {"deployments": _all(), "nodes": Node.objects.exists()}
    return render(request, "deployments/list.html", page)


@require_safe
def deployment(request: HttpRequest, name: str) -> HttpResponse:
    everything = Deployment.objects.select_related("cluster__head")
    found = get_object_or_404(everything.prefetch_related("replicas__node", "replicas__server"), name=name)
    replica = found.replica
    told = stories(Run.objects.filter(about=found.subject))
    page = {
        "deployment": found,
        "replica": replica,
        "replicas": found.replicas.all(),
        "node": replica.node if replica else found.cluster.head,
        "stories": told,
        "latest": told[0] if told else None,
        "sources": sources(told, replica.server if replica else None),
        "serving": found.state in SERVING,
        "at_rest": found.state in AT_REST,
        "deletable": rollout.deletable(found),
        "mends": server_page.mends(found),
        "servers": server_page.servers(found),
        "gap": server_page.gap(found),
        "left": server_page.left(found),
        "outdated": effects.outdated(found),
        "measured": {} if found.plan else measured(replica.measured if replica else {}),
        "predicted": prediction.compared(found.plan, replica.measured if replica else {}),
        "workers": prediction.each(found.plan, replica.measured if replica else {}),
        "plan_words": plan_page.words_of_kept(found.plan),
        "options": sorted(found.options.items()),
        "base_url": request.build_absolute_uri("/v1"),
        "source": _("demo model SmolLM2-135M-Instruct") if found.model == Deployment.DEMO else found.model,
    }
    return render(request, "deployments/detail.html", page)


def measured(values: dict[str, Any]) -> list[tuple[str, str]]:
    """What the model server said of itself while it started, with labels and units."""
    labels = {
        "weights_gib": (_("Weights"), "%.2f GiB"),
        "kv_gib": (_("KV cache"), "%.2f GiB"),
        "kv_tokens": (_("KV cache holds"), _("%d tokens")),
        "max_concurrency": (_("Full-length requests at once"), "%.1f"),
    }
    return [(label, unit % values[name]) for name, (label, unit) in labels.items() if name in values]


@require_POST
@role_required(OPERATOR)
def start(request: SignedIn, name: str) -> HttpResponse:
    found = get_object_or_404(Deployment, name=name)
    rollout.start(found, request.user)
    return go(request, found)


@require_POST
@role_required(OPERATOR)
def restart(request: SignedIn, name: str) -> HttpResponse:
    """Replace the servers by fresh ones, of the newest revision; the page said before whether there is a gap."""
    found = get_object_or_404(Deployment, name=name)
    exchange.replace(found, request.user)
    return go(request, found)


@require_POST
@role_required(OPERATOR)
def stop(request: SignedIn, name: str) -> HttpResponse:
    found = get_object_or_404(Deployment, name=name)
    rollout.stop(found, request.user)
    return go(request, found)


@require_POST
@role_required(ADMIN)
def delete(request: SignedIn, name: str) -> HttpResponse:
    rollout.delete(get_object_or_404(Deployment, name=name), request.user)
    messages.success(request, _("%(name)s is deleted.") % {"name": name})
    return go(request, "deployments")
