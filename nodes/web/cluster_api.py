"""The REST API of clusters: made, formed, joined and left, dissolved, deleted."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Field, Path, Query, Router, Schema
from ninja.responses import Status
from pydantic import StringConstraints

from controlplane.api import FAILURES, Listed, Name, Window, listed, needs
from controlplane.roles import ADMIN, OPERATOR
from nodes.clusters import stories as clusters
from nodes.models import Cluster, Node, Run
from nodes.web.api import RunOut, tell_run

router = Router(tags=["clusters"])

Network = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9.:/_-]*$")]


class ClusterOut(Schema):
    """Nodes that run one Ray cluster."""

    name: str
    state: str
    state_since: datetime
    reason: str
    head: str
    nodes: list[str]
    network: str
    port_base: int


class ClusterNew(Schema):
    """A cluster of a head and the nodes that join it."""

    name: Name
    head: Name
    nodes: list[Name] = Field(default_factory=list, max_length=256)
    network: Network = Field("", description="a subnet or an interface; empty: as the nodes are reached")
    port_base: int = Field(0, ge=0, le=65535, description="the first of its ports; 0: as the installation has it")


class Member(Schema):
    node: Name


class MemberRun(Schema):
    """What joining or leaving began; no run where nothing had to be started or ended."""

    run: RunOut | None


def _cluster(cluster: Cluster) -> ClusterOut:
    names = ("name", "state", "state_since", "reason", "network", "port_base")
    told = {name: getattr(cluster, name) for name in names}
    return ClusterOut(head=cluster.head.name, nodes=[node.name for node in cluster.nodes.all()], **told)


def _named(name: str) -> Cluster:
    return get_object_or_404(Cluster.objects.select_related("head"), name=name)


def _node(name: str) -> Node:
    return get_object_or_404(Node.objects.select_related("cluster"), name=name)


def _begun(run: Run | None) -> MemberRun:
    return MemberRun(run=tell_run(run) if run else None)


@router.get("/clusters", response={200: Listed[ClusterOut], **FAILURES})
def all_clusters(request: HttpRequest, window: Query[Window]) -> dict[str, Any]:
    return listed(Cluster.objects.select_related("head").prefetch_related("nodes"), window, _cluster)


@router.post("/clusters", response={201: ClusterOut, **FAILURES})
def create(request: HttpRequest, new: ClusterNew) -> Status[ClusterOut]:
    """A new cluster, which is not started yet."""
    needs(request, OPERATOR)
    others = [_node(name) for name in new.nodes]
    return Status(201, _cluster(clusters.create(new.name, _node(new.head), others, new.network, new.port_base)))


@router.get("/clusters/{name}", response={200: ClusterOut, **FAILURES})
def cluster(request: HttpRequest, name: Path[Name]) -> ClusterOut:
    return _cluster(_named(name))


@router.post("/clusters/{name}/form", response={202: RunOut, **FAILURES})
def form(request: HttpRequest, name: Path[Name]) -> Status[RunOut]:
    """Start Ray on the head and have the others join it."""
    user = needs(request, OPERATOR).user
    return Status(202, tell_run(clusters.form(_named(name), user)))


@router.post("/clusters/{name}/dissolve", response={202: RunOut, **FAILURES})
def dissolve(request: HttpRequest, name: Path[Name]) -> Status[RunOut]:
    """Stop Ray on all nodes."""
    user = needs(request, OPERATOR).user
    return Status(202, tell_run(clusters.dissolve(_named(name), user)))


@router.post("/clusters/{name}/join", response={202: MemberRun, **FAILURES})
def join(request: HttpRequest, name: Path[Name], member: Member) -> Status[MemberRun]:
    user = needs(request, OPERATOR).user
    return Status(202, _begun(clusters.join(_named(name), _node(member.node), user)))


@router.post("/clusters/{name}/leave", response={202: MemberRun, **FAILURES})
def leave(request: HttpRequest, name: Path[Name], member: Member) -> Status[MemberRun]:
    user = needs(request, OPERATOR).user
    found = _named(name)
    node = get_object_or_404(found.nodes, name=member.node)
    return Status(202, _begun(clusters.leave(found, node, user)))


@router.delete("/clusters/{name}", response={204: None, **FAILURES})
def delete(request: HttpRequest, name: Path[Name]) -> Status[None]:
    """Forget a cluster that is not running."""
    needs(request, ADMIN)
    clusters.delete(_named(name))
    return Status(204, None)
