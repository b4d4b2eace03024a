"""What pages know of nodes and who uses them before the first sample comes; `static/js/fleet.js` draws it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db.models import F, QuerySet

from deployments.models import Deployment
from deployments.states import SERVING, DeploymentState, ReplicaState
from nodes.models import Job, Node
from nodes.states import JOB_ACTIVE, NodeState

NODE_STATES = tuple(NodeState)
#: Replicas in these states hold no memory.
AWAY = frozenset({ReplicaState.WAITING, ReplicaState.STOPPED})
#: States whose reason is worth a line beside the node.
_TELLING = frozenset({NodeState.NEW, NodeState.UNREACHABLE, NodeState.FAILED})


def nodes(among: QuerySet[Node] | None = None) -> list[Node]:
    """Nodes (all of them, or those) with what a tile needs of their facts, without reading the rest of them."""
    wanted = {name: F(f"facts_json__{name}") for name in ("gpus", "cpus", "memory_total")}
    found = (Node.objects.all() if among is None else among).select_related("cluster").defer("facts_json").annotate(
        known_gpus=wanted["gpus"], known_cpus=wanted["cpus"], known_memory=wanted["memory_total"]
    )
    return list(found)


def gpus_of(node: Node) -> list[list[Any]]:
    """``[index, name, MiB]`` of each GPU of a node from `nodes`."""
    known = getattr(node, "known_gpus", None) or []
    return [[gpu.get("index", 0), gpu.get("name", ""), gpu.get("memory_total_mib", 0)] for gpu in known]


def memory_of(node: Node) -> int:
    return int(getattr(node, "known_memory", None) or 0)


def at_work(deployments: Iterable[Deployment]) -> list[Deployment]:
    """Those that use their nodes' memory."""
    return [one for one in deployments if one.state in SERVING or one.state == DeploymentState.ROLLING_OUT]


def fleet(found: Sequence[Node], deployments: Iterable[Deployment], everything: bool = True) -> dict[str, Any]:
    """The nodes from `nodes`, and which deployment (with its replicas) a job on them belongs to.

    ``everything``: they are all the nodes there are.
    """
    working = at_work(deployments)
    placed = _places(working)
    by_cluster: dict[int, list[str]] = {}
    for one in working:
        by_cluster.setdefault(one.cluster_id, []).append(one.name)
    rays = {str(node.ray_id): by_cluster.get(node.cluster_id or 0, []) for node in found if node.ray_id}
    servers = {str(copy.server_id): [one.name] for one in working for copy in one.replicas.all() if copy.server_id}
    return {
        "nodes": [_node(node, placed.get(node.pk, {}) | placed.get(node.name, {})) for node in found],
        "deployments": {one.name: one.get_absolute_url() for one in working},
        "jobs": {**rays, **servers},
        "active": [str(pk) for pk in Job.objects.filter(state__in=JOB_ACTIVE).values_list("pk", flat=True)],
        "everything": everything,
    }


def _places(working: Iterable[Deployment]) -> dict[int | str, dict[str, list[int]]]:
    """Node (by number or name) → deployment → the GPUs that it was given there; none where it chooses itself."""
    found: dict[int | str, dict[str, list[int]]] = {}
    for one in working:
        for copy in one.replicas.all():
            if copy.state in AWAY:
                continue
            found.setdefault(copy.node_id, {}).setdefault(one.name, [])
            for place in copy.placement:
                found.setdefault(place["host"], {}).setdefault(one.name, []).append(place.get("gpu"))
    return found


def _node(node: Node, placed: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "id": node.pk,
        "name": node.name,
        "url": node.get_absolute_url(),
        "state": node.state,
        "reason": node.reason.partition("\n")[0][:200] if node.state in _TELLING else "",
        "address": "" if node.kind == Node.Kind.LOCAL else node.address,
        "cluster": node.cluster.name if node.cluster else "",
        "labels": list(node.labels),
        "cpus": getattr(node, "known_cpus", None) or 0,
        "memory": memory_of(node),
        "gpus": gpus_of(node),
        "serves": list(placed),
        "placed": placed,
    }
