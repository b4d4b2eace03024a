"""Where the replicas of a deployment go: from its plan, or, without one, to the head of its cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments.models import Deployment, Replica
from deployments.states import REPLICA_AT_REST, ReplicaState
from nodes.clusters.view import world_size
from nodes.models import Node
from nodes.recipes.ray import port_plan
from nodes.states import JOB_ACTIVE

#: vLLM's ports on a node, counted from where Ray's port plan ends.
SERVER_PORTS = 60
#: What a replica knows of an earlier start, and forgets when it is started anew.
FRESH: Mapping[str, Any] = {"server": None, "tunnel": False, "phase": "", "percent": 0, "measured": {}}


def spec(deployment: Deployment) -> dict[str, Any]:
    """What a server is started from, kept with it: a later edit of the deployment is not what a restart runs."""
    flags = dict(deployment.plan.get("flags", {}))
    flags.pop("distributed-executor-backend", None)
    return {
        "model": deployment.model,
        "executor": deployment.executor,
        "options": {**flags, **deployment.options},
        "environment": dict(deployment.plan.get("environment", {})),
    }


def seats(plan: Mapping[str, Any], copies: int) -> list[list[dict[str, Any]]]:
    """For each copy the hosts and GPUs that the plan gives it, by rank; nothing where it does not say."""
    layout = plan.get("layout") or {}
    size = max(1, int(layout.get("tensor", 1)) * int(layout.get("pipeline", 1)))
    ranks = sorted(plan.get("placement", ()), key=lambda place: int(place["rank"]))
    places = [{"host": place["host"], "gpu": place.get("gpu")} for place in ranks]
    return [places[size * copy : size * (copy + 1)] for copy in range(copies)]


def given(deployment: Deployment) -> list[list[dict[str, Any]]]:
    """As `seats`; without a plan, processes of one host get GPUs of the head, no two copies the same.

    Raises `Problem` where it has not as many.
    """
    told, head = seats(deployment.plan, deployment.copies), deployment.cluster.head
    gpus = [gpu.index for gpu in head.facts.gpus]
    if deployment.executor != Deployment.Executor.MP or any(told) or not gpus:
        return told
    size = max(1, world_size(spec(deployment)["options"]))
    if size * deployment.copies > len(gpus):
        raise Problem(
            _("%(name)s wants %(wanted)d GPUs, and %(node)s has %(count)d.")
            % {"name": deployment.name, "wanted": size * deployment.copies, "node": head.name, "count": len(gpus)},
            _("Ask for fewer copies, or lower tensor-parallel-size × pipeline-parallel-size."),
        )
    places = [{"host": head.name, "gpu": gpu} for gpu in gpus]
    return [places[size * copy : size * (copy + 1)] for copy in range(deployment.copies)]


def place(deployment: Deployment) -> list[Replica]:
    """Make the deployment's replicas, waiting to be started: `copies` of them on their nodes, each with a port.

    Those of an earlier start are used again. To be called where no server of it runs.
    """
    places = given(deployment)
    deployment.replicas.filter(number__gt=len(places)).delete()
    return _placed(deployment, zip(count(1), places, strict=False), set())


def beside(deployment: Deployment) -> list[Replica]:
    """As `place`, beside those that run: with numbers and ports that these do not have."""
    deployment.replicas.filter(state__in=REPLICA_AT_REST).exclude(server__state__in=JOB_ACTIVE).delete()
    there = list(deployment.replicas.all())
    numbers = (number for number in count(1) if number not in {one.number for one in there})
    return _placed(deployment, zip(numbers, given(deployment), strict=False), {one.port for one in there})


def _placed(
    deployment: Deployment, numbered: Iterable[tuple[int, list[dict[str, Any]]]], taken: set[int]
) -> list[Replica]:
    ports: dict[int, Iterator[int]] = {}
    return [_place(deployment, number, places, ports, taken) for number, places in numbered]


def _place(
    deployment: Deployment, number: int, places: list[dict[str, Any]], ports: dict[int, Iterator[int]], taken: set[int]
) -> Replica:
    node = node_of(deployment, places)
    if node.pk not in ports:
        ports[node.pk] = free_ports(node, deployment, taken)
    placed: dict[str, Any] = {
        **FRESH, "node": node, "port": next(ports[node.pk]), "placement": places, "spec": spec(deployment),
        "revision": deployment.revision, "state": ReplicaState.WAITING, "reason": "", "failures": 0, "restarts": 0,
        "restart_at": None,
    }  # fmt: skip
    known = deployment.replicas.filter(number=number).first()
    if known is None:
        return deployment.replicas.create(number=number, **placed)
    if not known.move(placed.pop("state"), placed.pop("reason"), **placed):
        raise Problem(
            _("%(copy)s of %(name)s is still %(state)s.")
            % {"copy": known, "name": deployment.name, "state": known.fresh().state.replace("_", " ")},
            _("Stop the deployment first."),
        )
    return known


def seated(replica: Replica, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The replica's places as its workers have told where they are: Ray seats them as it likes, whatever the plan says.

    ``names`` are those of nodes, by address. Where not every worker told it, the places are left as they were.
    """
    workers = replica.measured.get("workers", {})
    hosts = [names.get(workers[rank][0], replica.node.name if not workers[rank][0] else "")
             for rank in map(str, range(len(workers))) if rank in workers]
    if len(hosts) < replica.measured.get("world_size", 1) or not all(hosts) or replica.spec.get("executor") == "mp":
        return list(replica.placement)
    planned: dict[str, list[Any]] = {}
    for place in replica.placement:
        planned.setdefault(place["host"], []).append(place.get("gpu"))
    return [{"host": host, "gpu": planned[host].pop(0) if planned.get(host) else None} for host in hosts]


def node_of(deployment: Deployment, places: list[dict[str, Any]]) -> Node:
    """Where the server itself runs: with Ray on the cluster's head, else on the host of its GPUs."""
    head = deployment.cluster.head
    if deployment.executor == Deployment.Executor.RAY or not places:
        return head
    return Node.objects.get(name=places[0]["host"])


def free_ports(node: Node, deployment: Deployment, not_these: set[int]) -> Iterator[int]:
    """Ports for servers on the node that no other deployment has, the deployment's own first."""
    others = Deployment.objects.filter(cluster__head=node).exclude(pk=deployment.pk)
    taken = {*others.values_list("port", flat=True), *_ports_of_others(node, deployment), *not_these}
    first = port_plan(settings.PORT_BASE).end
    yield from (port for port in [deployment.port] if port not in taken)
    yield from (port for port in count(first) if port not in taken and port != deployment.port)


def _ports_of_others(node: Node, deployment: Deployment) -> Iterator[int]:
    return iter(Replica.objects.filter(node=node).exclude(deployment=deployment).values_list("port", flat=True))
