"""The first page: what there is, how it is, and what to do when there is nothing yet."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST, require_safe

from controlplane.roles import ADMIN, SignedIn, role_required
from controlplane.views import go
from deployments import fleet
from deployments.models import Deployment
from deployments.rollout import stories as rollout
from deployments.states import SERVING
from nodes.models import Run
from nodes.states import NodeState
from nodes.web.pages import stories


@require_safe
def overview(request: HttpRequest) -> HttpResponse:
    nodes = fleet.nodes()
    told = Deployment.objects.select_related("cluster__head").defer("cluster__head__facts_json")
    deployments = list(told.prefetch_related("replicas"))
    page = {
        "nodes": nodes,
        "fleet": fleet.fleet(nodes, deployments),
        "node_states": fleet.NODE_STATES,
        "deployments": deployments,
        "stories": stories(Run.objects.all(), limit=8),
        "ready_nodes": sum(node.state == NodeState.READY for node in nodes),
        "ready_deployments": sum(deployment.state in SERVING for deployment in deployments),
        "gpus": sum(len(fleet.gpus_of(node)) for node in nodes),
        "memory": sum(map(fleet.memory_of, nodes)),
    }
    return render(request, "overview.html", page)


@require_POST
@role_required(ADMIN)
def try_demo(request: SignedIn) -> HttpResponse:
    """Register this machine, prepare it and deploy the demo model, in one click."""
    return go(request, rollout.try_demo(request.user))
