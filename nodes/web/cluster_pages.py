"""What the pages of clusters show: a row for each node, sums, problems by name. Reads only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.utils import timezone
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from nodes.clusters import care as clusters_care
from nodes.clusters import view as clusters_view
from nodes.clusters.address import inner_address, members
from nodes.clusters.room import foreign_leftovers
from nodes.clusters.steps import as_members, last_view, plan_of, running
from nodes.clusters.view import RayNode, View
from nodes.facts import Facts, Interface, Process
from nodes.models import Cluster, Node
from nodes.recipes.ray import ray_address
from nodes.states import CLUSTER_UP, ClusterState


@dataclass(frozen=True)
class Row:
    """One node of a cluster: what Ray has of it beside what it is. ``state`` is a word of `deck`'s."""

    node: Node
    head: bool
    address: str
    state: str
    why: str
    ray: RayNode | None
    facts: Facts

    @property
    def gpus(self) -> int:
        return len(self.facts.gpus)

    @property
    def versions(self) -> str:
        packages = self.facts.environment.packages
        known = [("Python", self.facts.environment.python), ("Ray", packages.get("ray", "")),
                 ("vLLM", packages.get("vllm", ""))]  # fmt: skip
        return ", ".join(f"{name} {version}" for name, version in known if version)

    def of(self, resource: str) -> tuple[float, float] | None:
        """Used and total of a resource, while the node is in Ray."""
        if self.ray is None or not self.ray.alive or resource not in self.ray.total:
            return None
        return self.ray.used.get(resource, 0.0), self.ray.total[resource]

    @property
    def ray_gpus(self) -> tuple[float, float] | None:
        return self.of("GPU")

    @property
    def ray_cpus(self) -> tuple[float, float] | None:
        return self.of("CPU")


@dataclass(frozen=True)
class Leftover:
    """Somebody else's Ray or vLLM on a node."""

    node: Node
    processes: Sequence[Process]


@dataclass(frozen=True)
class Picture:
    """All that the page of a cluster says about how it is."""

    rows: Sequence[Row]
    view: View | None
    seen_at: datetime | None
    stale: bool  # the view is older than it should be
    resources: Sequence[tuple[str, float, float]]
    problems: Sequence[Problem]
    leftovers: Sequence[Leftover]
    wait: timedelta | None  # until what is missing is started again


def picture(cluster: Cluster) -> Picture:
    """How a cluster is, as far as it was seen; asks nobody."""
    nodes = members(cluster)
    view = last_view(cluster) if cluster.state in CLUSTER_UP else None
    gone = clusters_care.missing(cluster) if cluster.state in CLUSTER_UP else {}
    shown = [_row(cluster, node, view, gone.get(node, "")) for node in nodes]
    return Picture(
        rows=shown,
        view=view,
        seen_at=datetime.fromtimestamp(view.t, UTC) if view else None,
        stale=view is not None and time.time() - view.t > clusters_care.VIEW_SECONDS,
        resources=_resources(view, nodes),
        problems=_problems(nodes, view),
        leftovers=[Leftover(node, found) for node in nodes if (found := foreign_leftovers(node.facts))],
        wait=max(cluster.next_try_at - timezone.now(), timedelta()) if cluster.next_try_at else None,
    )


def _row(cluster: Cluster, node: Node, view: View | None, why: str) -> Row:
    address = address_of(node)
    seen = view.at(address) if view and address else None
    return Row(node, node.pk == cluster.head_id, ray_address(address) if address else "–",
               _state(cluster, node, seen, why), why, seen, node.facts)  # fmt: skip


def address_of(node: Node) -> str:
    """The node's address in its cluster; empty where it has none, which is one of the problems."""
    try:
        return inner_address(node)
    except Problem:
        return ""


def _state(cluster: Cluster, node: Node, seen: RayNode | None, why: str) -> str:
    if why:
        return "lost" if node.ray else "stopped"
    if seen is not None and seen.alive:
        return "ready"
    if not running(node):
        return "stopped"
    return "stopping" if cluster.state == ClusterState.STOPPING else "starting" if seen is None else "lost"


def _resources(view: View | None, nodes: Sequence[Node]) -> list[tuple[str, float, float]]:
    """Sums over the cluster; the GPU that Ray is told of on nodes without one goes by what it is."""
    if view is None:
        return []
    real = any(node.facts.gpus for node in nodes)
    names = {"CPU": _("Processors"), "GPU": "GPU" if real else _("Places for workers"), "memory": _("Memory")}
    return [(names.get(name, name), *amounts) for name, *amounts in view.resources()]  # type: ignore[misc]


def _problems(nodes: Sequence[Node], view: View | None) -> list[Problem]:
    found = [problem for node in nodes for problem in _address_problem(node)]
    if found:
        return found
    wanted = as_members(list(nodes))
    differ = clusters_view.differences(view, wanted) if view else []
    return [*clusters_view.unlike([one for one in wanted if one.facts.environment.python]), *differ]


def _address_problem(node: Node) -> list[Problem]:
    try:
        inner_address(node)
    except Problem as problem:
        return [problem]
    return []


def ports(cluster: Cluster) -> list[tuple[str, str]]:
    """Every port of the cluster's Ray with what it is for."""
    plan = plan_of(cluster)
    return [
        (_("Head (GCS)"), str(plan.gcs)),
        (_("Node and object managers"), f"{plan.node_manager}, {plan.object_manager}"),
        (_("Agents"), f"{plan.runtime_env_agent}, {plan.agent_grpc}, {plan.agent_http}"),
        (_("Metrics"), f"{plan.metrics}, {plan.autoscaler_metrics}, {plan.dashboard_metrics}"),
        (_("Clients, dashboard"), f"{plan.client}, {plan.dashboard}"),
        (_("Workers"), f"{plan.first_worker}–{plan.last_worker}"),
    ]


@dataclass(frozen=True)
class Candidate:
    """A node that a cluster may be made of, or why not."""

    node: Node
    facts: Facts
    why_not: str

    @property
    def addresses(self) -> list[Interface]:
        """Those by which others may know it."""
        return [one for one in self.facts.interfaces if one.name != "lo"]


@dataclass(frozen=True)
class Line:
    """A cluster in the list."""

    cluster: Cluster
    nodes: Sequence[Node]
    owners: Sequence[str]

    @property
    def gpus(self) -> int:
        return sum(len(node.facts.gpus) for node in self.nodes)
