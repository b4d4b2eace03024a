"""Jobs that nobody wants any more are ended, however often it takes. What is wanted is in `deployments.mending`."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from django.db import transaction
from django.dispatch import receiver

from controlplane import streams
from controlplane.problems import Problem
from deployments.states import REPLICA_AT_REST, ReplicaState
from nodes import runs, signals, tasks
from nodes.models import Job
from nodes.states import JOB_ACTIVE

#: Seconds in which one job is not asked to end twice: a node that does not answer must not occupy every worker.
_ENDING_SECONDS = 30


@receiver(signals.tick)
def look_after(sender: object, **_kwargs: Any) -> None:
    """What nobody wants must not run: a lost message only delays its end.

    Those are the servers of replicas that are at rest or wait to be started, and jobs of runs that were given up.
    """
    unwanted = (*REPLICA_AT_REST, ReplicaState.WAITING)
    for job in {*Job.objects.filter(state__in=JOB_ACTIVE, serves__state__in=unwanted), *runs.orphans()}:
        end_soon(job)


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
