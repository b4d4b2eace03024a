"""Pages of clusters: list, new, detail, and start, stop, join, leave. They call the stories and never a host."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from controlplane.problems import Problem
from controlplane.roles import ADMIN, OPERATOR, SignedIn, role_required
from controlplane.views import go
from nodes import mesh
from nodes.clusters import stories as clusters
from nodes.clusters.address import members, shared_networks
from nodes.models import Cluster, Node, Run
from nodes.states import NodeState
from nodes.web.cluster_forms import ClusterForm, NetworkForm, as_lines
from nodes.web.cluster_pages import Candidate, Line, picture, ports
from nodes.web.pages import sources, stories


def _cluster(name: str) -> Cluster:
    return get_object_or_404(Cluster.objects.select_related("head__ray").prefetch_related("nodes__ray"), name=name)


@require_safe
def all_clusters(request: HttpRequest) -> HttpResponse:
    found = Cluster.objects.select_related("head").prefetch_related("nodes")
    lines = [Line(cluster, members(cluster), clusters.owners(cluster)) for cluster in found]
    return render(request, "clusters/list.html", {"lines": lines, "nodes": Node.objects.exists()})


@require_safe
def cluster(request: HttpRequest, name: str) -> HttpResponse:
    found = _cluster(name)
    nodes = members(found)
    told = stories(Run.objects.filter(Q(about=found.subject) | Q(steps__kind__startswith="ray-", steps__node__in=nodes))
                   .distinct())  # fmt: skip
    settings = {"network": found.network, "port_base": found.port_base or None, "resources": as_lines(nodes)}
    page: dict[str, Any] = {
        "cluster": found,
        "now": picture(found),
        "ports": ports(found),
        "at_rest": found.state in clusters.AT_REST,
        "owners": clusters.owners(found),
        "free": [one.node for one in candidates() if not one.why_not and one.node not in nodes],
        "settings": NetworkForm(initial=settings),
        "networks": shared_networks(nodes),
        "stories": told,
        "sources": sources(told),
        "mesh": mesh.matrix(nodes) if len(nodes) > 1 else None,
    }
    return render(request, "clusters/detail.html", page)


def candidates() -> list[Candidate]:
    """All nodes, with the reason where one cannot be in a new cluster."""
    found = Node.objects.select_related("cluster__head", "ray").prefetch_related("cluster__nodes")
    return [Candidate(node, node.facts, _why_not(node)) for node in found]


def _why_not(node: Node) -> str:
    if node.state != NodeState.READY:
        return _("It is not ready: prepare it first.")
    try:
        clusters.check_free(node)
    except Problem as problem:
        return problem.what
    return ""


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def new(request: SignedIn) -> HttpResponse:
    form = ClusterForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            return redirect(_create(request, form))
        except Problem as problem:
            form.problem = problem
    listed = candidates()
    possible = [one.node for one in listed if not one.why_not]
    page = {"form": form, "candidates": listed, "possible": possible, "networks": shared_networks(possible),
            "chosen": request.POST.getlist("nodes"), "head": request.POST.get("head")}  # fmt: skip
    return render(request, "clusters/new.html", page, status=409 if form.is_bound else 200)


def _create(request: SignedIn, form: ClusterForm) -> Cluster:
    data = form.cleaned_data
    made = clusters.create(data["name"], data["head"], list(data["nodes"]), data["network"], data["port_base"] or 0)
    clusters.offer(made, data["resources"])
    if "start" in request.POST:
        try:
            clusters.form(made, request.user)
        except Problem as problem:  # the cluster exists: its own page is the place to go on from
            messages.warning(request, str(problem))
    return made


@require_POST
@role_required(OPERATOR)
def start(request: SignedIn, name: str) -> HttpResponse:
    found = _cluster(name)
    clusters.form(found, request.user)
    return go(request, found)


@require_POST
@role_required(OPERATOR)
def stop(request: SignedIn, name: str) -> HttpResponse:
    found = _cluster(name)
    clusters.dissolve(found, request.user)
    return go(request, found)


@require_POST
@role_required(OPERATOR)
def edit(request: SignedIn, name: str) -> HttpResponse:
    """Change network, ports and resources of a stopped cluster."""
    found = _cluster(name)
    form = NetworkForm(request.POST)
    if not form.is_valid():
        raise Problem(" ".join(str(error) for errors in form.errors.values() for error in errors))
    data = form.cleaned_data
    clusters.change_network(found, data["network"], data["port_base"] or 0)
    clusters.offer(found, data["resources"])
    messages.success(request, _("Saved. It holds from the next start on."))
    return go(request, found)


@require_POST
@role_required(OPERATOR)
def join(request: SignedIn, name: str) -> HttpResponse:
    found = _cluster(name)
    clusters.join(found, get_object_or_404(Node, name=request.POST.get("node", "")), request.user)
    return go(request, found)


@require_POST
@role_required(OPERATOR)
def leave(request: SignedIn, name: str) -> HttpResponse:
    found = _cluster(name)
    clusters.leave(found, get_object_or_404(Node, name=request.POST.get("node", ""), cluster=found), request.user)
    return go(request, found)


@require_POST
@role_required(OPERATOR)
def clear(request: SignedIn, name: str) -> HttpResponse:
    """End the processes of somebody else's Ray on one node, exactly those that the operator was shown."""
    found = _cluster(name)
    node = get_object_or_404(Node, name=request.POST.get("node", ""), cluster=found)
    clusters.clear(node, request.POST.getlist("process"), request.user)
    return go(request, found)


@require_POST
@role_required(ADMIN)
def delete(request: SignedIn, name: str) -> HttpResponse:
    clusters.delete(_cluster(name))
    messages.success(request, _("%(name)s is deleted. Its nodes stay.") % {"name": name})
    return go(request, "clusters")
