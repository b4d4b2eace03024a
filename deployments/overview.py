"""The first page: what there is, how it is, and what to do when there is nothing yet."""

from __future__ import annotations

from typing import NamedTuple

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST, require_safe

from controlplane.roles import ADMIN, SignedIn, role_required
from controlplane.views import go
from deployments import rollout
from deployments.models import Deployment
from deployments.states import SERVING, DeploymentState
from nodes.models import Node, Run
from nodes.pages import stories
from nodes.states import NodeState


class Host(NamedTuple):
    """A node and the deployments that use its memory."""

    node: Node
    serves: list[Deployment]


@require_safe
def overview(request: HttpRequest) -> HttpResponse:
    nodes = list(Node.objects.all())
    deployments = list(Deployment.objects.select_related("cluster__head").prefetch_related("replicas"))
    at_work = [one for one in deployments if one.state in SERVING or one.state == DeploymentState.ROLLING_OUT]
    page = {
        "nodes": nodes,
        "fleet": [Host(node, [d for d in at_work if d.cluster.head_id == node.pk]) for node in nodes],
        "deployments": deployments,
        "stories": stories(Run.objects.all(), limit=8),
        "ready_nodes": sum(node.state == NodeState.READY for node in nodes),
        "ready_deployments": sum(deployment.state in SERVING for deployment in deployments),
        "gpus": sum(len(node.facts.gpus) for node in nodes),
        "memory": sum(node.facts.memory_total for node in nodes),
    }
    return render(request, "overview.html", page)


@require_POST
@role_required(ADMIN)
def try_demo(request: SignedIn) -> HttpResponse:
    """Register this machine, prepare it and deploy the demo model, in one click."""
    return go(request, rollout.try_demo(request.user))
