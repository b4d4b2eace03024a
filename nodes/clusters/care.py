"""Looking after clusters: what is wanted is compared with what is, when a job ends and once a second besides.

Only what was positively seen counts: a Ray whose job ended, or a node that Ray itself calls dead for a while. Views
that do not come, and nodes that cannot be reached, never start or end anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

from django.conf import settings
from django.dispatch import receiver
from django.utils import timezone
from django.utils.translation import gettext as _

from controlplane import streams
from controlplane.problems import Problem
from nodes import runs, signals
from nodes.clusters.address import inner_address, members
from nodes.clusters.steps import change, last_view, note_stopped, running, why_ended
from nodes.clusters.stories import ray_stages
from nodes.ending import end_soon
from nodes.models import Cluster, Job, Node, Step
from nodes.remote.errors import HostProblem
from nodes.runs import Stages
from nodes.states import FINISHED, JOB_ACTIVE, ClusterState, NodeState

#: Seconds until an attempt to bring back what is missing: RESTART_DELAY, doubled with each one, up to this.
LONGEST_DELAY = 300
#: After so long in good health, a cluster's next trouble counts as its first.
HEALTHY = timedelta(minutes=5)
#: Seconds after which a view says nothing about now.
VIEW_SECONDS = 15.0
#: Seconds for which Ray must call a node dead before its Ray, which seems to run, is started again.
DEAD_SECONDS = 30.0
_KEPT = 7 * 86400  # seconds
_RAY_STEPS = ("ray-room", "alike", "ray-head", "ray-worker", "ray-joined", "ray-stop", "ray-end", "stop-ray")


@receiver(signals.job_ended)
def ray_ended(sender: object, job: Job, **_kwargs: Any) -> None:
    """A Ray that ended is noticed at once."""
    for node in Node.objects.filter(ray=job, cluster__isnull=False).select_related("cluster__head__ray"):
        assert node.cluster is not None
        with suppress(HostProblem):  # then only its exit status is known
            streams.client().set(_why_key(job), why_ended(job), ex=_KEPT)
        look_at(node.cluster)


@receiver(signals.tick)
def look_after(sender: object, **_kwargs: Any) -> None:
    resting = Cluster.objects.exclude(state=ClusterState.STOPPED).select_related("head__ray")
    for cluster in resting.prefetch_related("nodes__ray"):
        look_at(cluster)
    held = Node.objects.filter(ray__isnull=False).values("ray")
    for job in Job.objects.filter(name__in=("ray-head", "ray-worker"), state__in=JOB_ACTIVE).exclude(pk__in=held):
        end_soon(job)  # of a node that left while it could not be reached


@receiver(signals.node_back)
def node_back(sender: object, node: Node, **_kwargs: Any) -> None:
    """Who is back need not wait until the others' delay is over."""
    soon = timezone.now() + timedelta(seconds=settings.RESTART_DELAY)
    Cluster.objects.filter(nodes=node, state=ClusterState.DEGRADED, next_try_at__gt=soon).update(next_try_at=soon)


def look_at(cluster: Cluster) -> None:
    """Compare what is wanted with what is, and take one step."""
    if _busy(cluster):
        return
    match cluster.state:
        case ClusterState.READY | ClusterState.DEGRADED:
            _keep_up(cluster)
        case ClusterState.STARTING:
            change(cluster, ClusterState.FAILED, _last_failure(cluster))
        case ClusterState.STOPPING | ClusterState.FAILED:
            for node in members(cluster):
                if running(node):
                    end_soon(node.ray)
            note_stopped(cluster)


def _busy(cluster: Cluster) -> bool:
    """Whether some run is at Ray on these nodes; then all is left to it."""
    nodes = [node.pk for node in members(cluster)]
    unfinished = Step.objects.exclude(state__in=FINISHED).exclude(run__state__in=FINISHED)
    return unfinished.filter(node__in=nodes, kind__in=_RAY_STEPS).exists()


def _last_failure(cluster: Cluster) -> str:
    """Why a start of which nothing is left did not succeed."""
    nodes = [node.pk for node in members(cluster)]
    last = Step.objects.filter(node__in=nodes, kind__in=_RAY_STEPS).order_by("pk").last()
    return last.run.reason if last else ""


def _keep_up(cluster: Cluster) -> None:
    gone = missing(cluster)
    if not gone:
        change(cluster, ClusterState.READY, only_from=ClusterState.DEGRADED)
        return
    told = "\n".join(f"{node.name}: {why}" for node, why in gone.items())
    if cluster.state == ClusterState.READY:
        restarts = 0 if timezone.now() - cluster.state_since > HEALTHY else cluster.restarts
        change(cluster, ClusterState.DEGRADED, told, restarts=restarts, next_try_at=_after(restarts))
        return
    if told != cluster.reason:
        Cluster.objects.filter(pk=cluster.pk, state=ClusterState.DEGRADED).update(reason=told)
        cluster.poke()
    if cluster.next_try_at is None or cluster.next_try_at <= timezone.now():
        _mend(cluster, list(gone))


def missing(cluster: Cluster) -> Mapping[Node, str]:
    """The nodes that are not in Ray, with the reason."""
    nodes = members(cluster)
    gone = {node: _why_ended(node) for node in nodes if not running(node)}
    return {**gone, **_called_dead(cluster, [node for node in nodes if node not in gone])}


def _why_ended(node: Node) -> str:
    """From what was kept when it ended: watch must not wait for a node to read a log there."""
    if node.ray is None:
        return _("Ray was not started there.")
    kept = cast(bytes | None, streams.client().get(_why_key(node.ray)))
    if kept:
        return _("Ray ended: %(why)s") % {"why": kept.decode()}
    if node.ray.exit_status is None:
        return _("Ray is gone: it was killed, or the server was restarted.")
    return _("Ray ended with status %(status)d.") % {"status": node.ray.exit_status}


def _why_key(job: Job) -> str:
    return f"cluster:why:{job.pk}"


def _called_dead(cluster: Cluster, nodes: list[Node]) -> dict[Node, str]:
    """Those that a fresh view has as dead, or not at all, though their Ray seems to run."""
    view = last_view(cluster)
    if view is None or time.time() - view.t > VIEW_SECONDS:
        return {}
    found: dict[Node, str] = {}
    for node in nodes:
        seen = view.at(_address(node))
        born = node.ray.created_at.timestamp() if node.ray else 0.0
        if (seen is None or not seen.alive) and view.t - born > DEAD_SECONDS:
            found[node] = _("Ray lost it: %(why)s") % {"why": (seen.why if seen else "") or "–"}
    return found


def _address(node: Node) -> str:
    try:
        return inner_address(node)
    except Problem:
        return ""


def _mend(cluster: Cluster, gone: list[Node]) -> None:
    """Start what is missing again, as far as it can be reached; all of it, where the head is what is missing."""
    reachable = [node for node in gone if node.state != NodeState.UNREACHABLE and _dead_for_long(node)]
    if cluster.head in gone:
        if cluster.head not in reachable:
            return
        reachable = [node for node in members(cluster) if node.state != NodeState.UNREACHABLE]
    if not reachable:
        return
    restarts = cluster.restarts + 1
    claimed = Cluster.objects.filter(pk=cluster.pk, restarts=cluster.restarts, state=ClusterState.DEGRADED)
    if claimed.update(restarts=restarts, next_try_at=_after(restarts)):
        try:
            runs.start("mend", cluster.subject, _mending(cluster, reachable), None)
        except Problem:
            return  # somebody else does something with it


def _mending(cluster: Cluster, nodes: list[Node]) -> Stages:
    old = [("ray-end", node) for node in nodes if running(node)]
    others = [node for node in nodes if node != cluster.head]
    return [*([old] if old else []), [("ray-room", node) for node in nodes], *ray_stages([cluster.head, *others])]


def _dead_for_long(node: Node) -> bool:
    """Whether Ray's word about a node whose Ray seems to run has stood long enough to act on it."""
    key = f"cluster:dead:{node.pk}"
    if not running(node):
        return True
    now = time.time()
    streams.client().set(key, now, nx=True, ex=int(DEAD_SECONDS * 4) + 10)
    return now - float(cast(bytes, streams.client().get(key)) or now) > DEAD_SECONDS


def _after(restarts: int) -> Any:
    return timezone.now() + timedelta(seconds=min(settings.RESTART_DELAY * 2**min(restarts, 10), LONGEST_DELAY))
