"""Looking after deployments: what is wanted is compared with what is, when a job ends and once a second besides."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from django.db import transaction
from django.dispatch import receiver
from django.utils.translation import gettext as _

from controlplane import streams
from controlplane.problems import Problem
from deployments import diagnosis
from deployments.gateway import routes
from deployments.models import Deployment, Replica
from deployments.states import REPLICA_AT_REST, DeploymentState, ReplicaState
from nodes import logs, runs, signals, tasks
from nodes.models import Cluster, Job
from nodes.states import JOB_ACTIVE

#: Seconds in which one job is not asked to end twice: a node that does not answer must not occupy every worker.
_ENDING_SECONDS = 30


@receiver(signals.job_ended)
def server_ended(sender: object, job: Job, **_kwargs: Any) -> None:
    """A model server that ends by itself has failed, whatever its status: vLLM exits with 0 when its engine dies."""
    for replica in Replica.objects.filter(server=job, state=ReplicaState.READY).select_related("deployment"):
        found = diagnosis.match(logs.tail(job, 1 << 20))
        why = f"{found.cause}\n{found.fix}" if found else runs.last_words(job)
        reason = _("The model server ended: %(why)s") % {"why": why}
        if replica.move(ReplicaState.FAILED, reason):
            end_soon(job)
            replica.deployment.move(DeploymentState.FAILED, reason)
            transaction.on_commit(routes.poke)


@receiver(signals.tick)
def look_after(sender: object, **_kwargs: Any) -> None:
    """Compare what is wanted with what is: a lost message only delays.

    Model servers of deployments that failed or stopped, and jobs of runs that were given up, must not run on. A
    deployment that serves must have a server that runs.
    """
    for job in {*Job.objects.filter(state__in=JOB_ACTIVE, serves__state__in=REPLICA_AT_REST), *runs.orphans()}:
        end_soon(job)
    for job in Job.objects.filter(serves__state=ReplicaState.READY).exclude(state__in=JOB_ACTIVE):
        tasks.send(tasks.job_over, str(job.pk))


@receiver(signals.cluster_used)
def on_cluster(sender: object, cluster: Cluster, running: bool, **_kwargs: Any) -> list[str]:
    """The names of deployments on a cluster: those that need its Ray now, or all."""
    found = Deployment.objects.filter(cluster=cluster)
    if running:
        found = found.filter(state__in=(DeploymentState.ROLLING_OUT, DeploymentState.READY, DeploymentState.DEGRADED))
    return list(found.values_list("name", flat=True))


def end_soon(job: Job | None) -> None:
    """Have a worker end all processes of a job, also what it left behind when it ended by itself."""
    if job is not None and streams.client().set(f"ending:{job.pk}", 1, nx=True, ex=_ENDING_SECONDS):
        transaction.on_commit(lambda: tasks.send(end_job, str(job.pk)))


@shared_task
def end_job(job_id: str) -> None:
    """End all processes of a job that nobody wants any more."""
    try:
        runs.end_job(Job.objects.select_related("node").get(pk=job_id))
    except (Problem, Job.DoesNotExist):
        return  # the node is away, and a tick asks again; or the job is forgotten
    streams.client().delete(f"ending:{job_id}")
