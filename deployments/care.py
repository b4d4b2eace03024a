"""Jobs that nobody wants any more are ended, however often it takes. What is wanted is in `deployments.mending`."""

from __future__ import annotations

from typing import Any

from django.db.models import Q
from django.dispatch import receiver

from deployments.models import Deployment
from deployments.rollout import stories as rollout
from deployments.states import COMING_BACK, REPLICA_AT_REST, DeploymentState, ReplicaState
from nodes import ending, runs, signals
from nodes.models import Cluster, Job
from nodes.states import JOB_ACTIVE


@receiver(signals.tick)
def look_after(sender: object, **_kwargs: Any) -> None:
    """What nobody wants must not run: a lost message only delays its end.

    Those are the servers of replicas that are at rest or wait to be started or are no more, and jobs of runs that were
    given up.
    """
    for deployment in Deployment.objects.filter(state=DeploymentState.STOPPING):
        rollout.go_on_stopping(deployment)
    unwanted = (*REPLICA_AT_REST, ReplicaState.WAITING)
    running = Job.objects.filter(state__in=JOB_ACTIVE)
    forgotten = running.filter(name="serve", serves__isnull=True)  # of a deployment deleted while its node was away
    for job in {*running.filter(serves__state__in=unwanted), *forgotten, *runs.orphans()}:
        ending.end_soon(job)


@receiver(signals.cluster_used)
def on_cluster(sender: object, cluster: Cluster, running: bool, **_kwargs: Any) -> list[str]:
    """The names of deployments on a cluster: those that need its Ray now, or all."""
    found = Deployment.objects.filter(cluster=cluster)
    if running:
        at_work = Q(state__in=(DeploymentState.ROLLING_OUT, DeploymentState.READY, DeploymentState.DEGRADED))
        found = found.filter(at_work | Q(state=DeploymentState.FAILED, replicas__state__in=COMING_BACK))
    return list(found.values_list("name", flat=True).distinct())
