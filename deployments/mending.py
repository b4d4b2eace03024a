"""Servers that ended by themselves are started again, and a deployment's state follows from those of its replicas.

What was looked at and found is compared with what is wanted, once a second. Nothing is done about what could not be
looked at: a node out of sight may serve as well as ever, so its servers are only believed dead once it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.dispatch import receiver
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from deployments.gateway import routes
from deployments.models import Deployment, Replica
from deployments.rollout import causes
from deployments.rollout import stories as rollout
from deployments.states import COMING_BACK, SERVING, DeploymentState, ReplicaState
from nodes import ending, runs, signals, tasks
from nodes.clusters import care as clusters_care
from nodes.models import Job, Node, Run
from nodes.runs import Story
from nodes.states import FINISHED, JOB_ACTIVE, ClusterState, NodeState
from nodes.telemetry import store

#: The delay before a server is started again doubles with each end in a row, from RESTART_DELAY to this.
LONGEST_DELAY = timedelta(minutes=5)
#: A server that worked for so long starts with the first delay again.
STABLE = timedelta(minutes=10)
#: A deployment's servers are not started by themselves more often than this.
LEAST_BETWEEN = timedelta(minutes=1)
#: Of a node that was not heard of for some seconds it will soon be known whether it is away; after a minute it is not.
SILENT, SILENT_LONG = 5.0, 60.0
#: Replicas in these states have a server that is meant to run.
SERVES = (ReplicaState.READY, ReplicaState.UNREACHABLE)
#: Replicas in these states make room for others.
_LEAVING = frozenset({ReplicaState.DRAINING, ReplicaState.STOPPING, ReplicaState.STOPPED})


def now() -> datetime:
    """The clock that everything here goes by."""
    return timezone.now()


def delay(failures: int) -> timedelta:
    """How long a server that ended so many times in a row is left alone."""
    return min(LONGEST_DELAY, timedelta(seconds=settings.RESTART_DELAY) * (1 << min(max(failures - 1, 0), 10)))


def ended(replica: Replica, why: str) -> bool:
    """The replica's server ended although it was wanted: it waits to be started again. True when this call noticed."""
    lasted = replica.state == ReplicaState.READY and now() - replica.state_since > STABLE
    failures = 1 if lasted else replica.failures + 1
    waits = {"failures": failures, "restart_at": now() + delay(failures), "phase": "", "percent": 0}
    if not replica.move(ReplicaState.WAITING, why, only_from=replica.state, **waits):
        return False
    ending.end_soon(replica.server)
    assess(replica.deployment)
    transaction.on_commit(routes.poke)
    return True


def assess(deployment: Deployment) -> None:
    """Bring the deployment's state in line with its replicas', where it is one that follows from them."""
    replicas = list(deployment.replicas.select_related("node"))
    state = deployment.fresh().state
    busy = _busy(deployment)
    returning = any(one.state in COMING_BACK for one in replicas)
    stranded = state == DeploymentState.ROLLING_OUT and not busy
    if not (state in SERVING or stranded or (state == DeploymentState.FAILED and returning)):
        return
    ready = sum(one.in_service for one in replicas)
    expected = _expected(deployment, replicas)
    reason = "" if ready >= expected else why_not_all(replicas)
    wanted = _state(ready, expected, busy)
    if (wanted, reason) != (state, deployment.fresh().reason) and deployment.move(wanted, reason):
        transaction.on_commit(routes.poke)


def _expected(deployment: Deployment, replicas: Sequence[Replica]) -> int:
    """How many replicas should answer now: those that are to take over from others do not count before they do."""
    coming = (ReplicaState.WAITING, ReplicaState.ROLLING_OUT)
    standing = [
        one for one in replicas if one.state not in _LEAVING and not (one.state in coming and one.restart_at is None)]
    return max(1, min(deployment.copies, len(standing)))


def _state(ready: int, wanted: int, busy: bool) -> DeploymentState:
    if ready >= wanted:
        return DeploymentState.READY
    if ready:
        return DeploymentState.DEGRADED
    return DeploymentState.ROLLING_OUT if busy else DeploymentState.FAILED


def why_not_all(replicas: Sequence[Replica]) -> str:
    """What is said of a deployment of which not every replica answers: the first one's reason."""
    amiss = [one for one in replicas if not one.in_service]
    told = next((one.reason for one in amiss if one.reason), "")
    if len(replicas) == 1 or not told:
        return told
    return _("%(copy)s: %(why)s") % {"copy": next(one for one in amiss if one.reason), "why": told}


def _busy(deployment: Deployment) -> bool:
    return Run.objects.filter(about=deployment.subject).exclude(state__in=FINISHED).exists()


# --- started again -----------------------------------------------------------------------------------------------


@receiver(signals.job_ended)
def server_ended(sender: object, job: Job, **_kwargs: Any) -> None:
    """A model server that ends by itself has failed, whatever its status: vLLM exits with 0 when its engine dies."""
    for replica in Replica.objects.filter(server=job, state__in=SERVES).select_related("deployment__cluster"):
        ended(replica, _("The model server ended: %(why)s") % {"why": _why(replica, job)})


def _why(replica: Replica, job: Job) -> str:
    """From the server's log; and what is amiss with its cluster's Ray, which may have cost it its workers."""
    cluster, told = replica.deployment.cluster, causes.of_end(job)
    if replica.spec.get("executor", "ray") != "ray" or cluster.state != ClusterState.DEGRADED:
        return told
    what, newline, fix = told.partition("\n")
    return f"{what} ({cluster.reason.replace(chr(10), '; ')}){newline}{fix}"


@receiver(signals.tick)
def look_after(sender: object, **_kwargs: Any) -> None:
    """Start what is due, and follow what changed. Once a second; touches no node."""
    for job in Job.objects.filter(serves__state__in=SERVES).exclude(state__in=JOB_ACTIVE):
        tasks.send(tasks.job_over, str(job.pk))  # its end was noted, and the message lost
    for replica in Replica.objects.filter(state=ReplicaState.ROLLING_OUT).select_related("deployment"):
        if not _busy(replica.deployment):  # the run that brought it up was given up
            ended(replica, replica.reason)
    for deployment in Deployment.objects.filter(replicas__state__in=COMING_BACK).distinct():
        assess(deployment)
        for replica in due(deployment)[:1]:
            recover(replica)


def due(deployment: Deployment) -> list[Replica]:
    """Replicas whose time has come and whose nodes are there, with Ray; the one that waits longest first."""
    found = deployment.replicas.filter(state=ReplicaState.WAITING, restart_at__lte=now())
    found = found.exclude(server__state__in=JOB_ACTIVE).select_related("node", "deployment__cluster__head")
    return [one for one in found.order_by("restart_at") if not (missing(one) or _silent(one) or without_ray(one))]


def without_ray(replica: Replica) -> list[Node]:
    """The nodes that the replica needs and that its cluster's Ray has lost: they are brought back first."""
    cluster = replica.deployment.cluster
    if replica.spec.get("executor", "ray") != "ray" or cluster.state != ClusterState.DEGRADED:
        return []
    needed = hosts(replica)
    return [node for node in clusters_care.missing(cluster) if node.name in needed]


def _silent(replica: Replica) -> bool:
    nodes = Node.objects.filter(name__in=hosts(replica)).values_list("pk", flat=True)
    return any(SILENT < seconds < SILENT_LONG for seconds in store.silence(list(nodes)).values())


def missing(replica: Replica) -> list[Node]:
    """The nodes that the replica needs and that cannot be reached now."""
    return list(Node.objects.filter(name__in=hosts(replica), state=NodeState.UNREACHABLE))


def hosts(replica: Replica) -> set[str]:
    """The names of the nodes that the replica runs on: its server's, and its workers'."""
    return {replica.node.name, *(place["host"] for place in replica.placement)}


def recover(replica: Replica) -> Run | None:
    """Start the replica's server again, unless somebody is at it or the last time is too short ago."""
    deployment, moment = replica.deployment, now()
    rested = Q(restarted_at=None) | Q(restarted_at__lte=moment - LEAST_BETWEEN)
    alive = Q(state__in=(*SERVING, DeploymentState.FAILED))
    try:
        with transaction.atomic():
            if not Deployment.objects.filter(rested, alive, pk=deployment.pk).update(restarted_at=moment):
                return None
            Replica.objects.filter(pk=replica.pk).update(restarts=replica.restarts + 1)
            if not deployment.replicas.filter(state=ReplicaState.READY).exists():
                deployment.move(DeploymentState.ROLLING_OUT, replica.reason)
            away = Node.objects.filter(state=NodeState.UNREACHABLE)
            stages = rollout.start_stages(deployment, [replica], again_without=list(away))
            return runs.start("recover", deployment.subject, stages, None, replica=replica.pk)
    except Problem:  # another run of the deployment goes on; it will be due again
        return None


def _recovered(run: Run, ok: bool, reason: str) -> None:
    replica = Replica.objects.select_related("deployment").filter(pk=run.options["replica"]).first()
    if replica is None:
        return
    if not ok:
        ended(replica, reason)
    elif replica.move(ReplicaState.READY, percent=100, restart_at=None):
        transaction.on_commit(routes.poke)
    assess(replica.deployment)


runs.register_story(Story("recover", gettext_lazy("Start again"), _recovered))
