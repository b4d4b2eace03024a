"""Jobs that nobody wants any more are ended by a worker, again and again until they are."""

from __future__ import annotations

from celery import shared_task
from django.db import transaction

from controlplane import streams
from controlplane.problems import Problem
from nodes import runs, tasks
from nodes.models import Job

#: Seconds in which one job is not asked to end twice: a node that does not answer must not occupy every worker.
_SECONDS = 30


def end_soon(job: Job | None) -> None:
    """Have a worker end all processes of a job, also what it left behind when it ended by itself."""
    if job is not None and streams.client().set(f"ending:{job.pk}", 1, nx=True, ex=_SECONDS):
        transaction.on_commit(lambda: tasks.send(end_unwanted, str(job.pk)))


@shared_task
def end_unwanted(job_id: str) -> None:
    """End all processes of a job that nobody wants any more."""
    try:
        runs.end_job(Job.objects.select_related("node").get(pk=job_id))
    except (Problem, Job.DoesNotExist):
        return  # the node is away, and a tick asks again; or the job is forgotten
    streams.client().delete(f"ending:{job_id}")
