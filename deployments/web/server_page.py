"""What a deployment's page says of its servers: where each is, what it waits for, and how they would be replaced."""

from __future__ import annotations

from typing import NamedTuple

from django.utils.translation import gettext as _

from controlplane.problems import Problem
from controlplane.templatetags.deck import duration
from deployments import mending
from deployments.models import Deployment, Replica
from deployments.rollout import exchange
from deployments.rollout.replacing import WAYS
from deployments.states import COMING_BACK, SERVING, DeploymentState, ReplicaState


class Server(NamedTuple):
    """A replica as the page tells it. ``hope``: what it waits for; empty where it waits for nothing."""

    replica: Replica
    where: str
    hope: str


def servers(deployment: Deployment) -> list[Server]:
    return [Server(one, _where(one), _hope(one)) for one in deployment.replicas.all()]


def _where(replica: Replica) -> str:
    """The GPUs, or the hosts where there are several."""
    hosts = list(dict.fromkeys(place["host"] for place in replica.placement))
    if len(hosts) > 1:
        return _("workers on %(hosts)s") % {"hosts": ", ".join(hosts)}
    return ", ".join(f"GPU {gpu}" for gpu in replica.gpus) if replica.spec.get("executor") == "mp" else ""


def _hope(replica: Replica) -> str:
    if replica.state == ReplicaState.UNREACHABLE:
        return _("It is back in service as soon as its node is.")
    if replica.state != ReplicaState.WAITING or replica.restart_at is None:
        return ""
    away = mending.missing(replica)
    if away:
        return _("It is started again as soon as %(nodes)s can be reached.") % {"nodes": ", ".join(map(str, away))}
    rayless = mending.without_ray(replica)
    if rayless:
        told = {"nodes": ", ".join(map(str, rayless))}
        return _("It is started again as soon as Ray is back on %(nodes)s.") % told
    left = replica.restart_at - mending.now()
    if left.total_seconds() <= 0:
        return _("It is started again in a moment.")
    return _("It is started again in %(time)s.") % {"time": duration(left)}


def mends(deployment: Deployment) -> bool:
    """Whether it failed and comes back by itself: then there is something to stop as well."""
    failed = deployment.state == DeploymentState.FAILED
    return failed and any(one.state in COMING_BACK for one in deployment.replicas.all())


def gap(deployment: Deployment) -> str:
    """What a replacement would be like now; empty where nothing runs."""
    if deployment.state not in SERVING:
        return ""
    try:
        return str(WAYS[exchange.forecast(deployment)])
    except Problem as problem:
        return str(problem)


def left(deployment: Deployment) -> str:
    """What a stop could not end, since its node is out of sight: a model server, or Ray."""
    if deployment.state == DeploymentState.STOPPING:
        return deployment.reason
    cluster = deployment.cluster
    return cluster.reason if deployment.state == DeploymentState.STOPPED and cluster.state == "stopping" else ""
