"""How jobs are ended: by a step that sees it through, or, where nobody wants one any more, by a worker in passing."""

from __future__ import annotations

from datetime import timedelta

from celery import shared_task
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from controlplane import streams
from controlplane.problems import Problem
from nodes import runs, sight, tasks
from nodes.models import Job, Step
from nodes.recipes import Satisfied
from nodes.runs import Done, Waiting
from nodes.states import JOB_ACTIVE

#: After this long a job that was asked to end is killed.
GRACE = timedelta(seconds=20)
#: Seconds in which one job is not asked to end twice: a node that does not answer must not occupy every worker.
_SECONDS = 30


def begin_end(job: Job | None) -> Satisfied | Waiting:
    """Ask all processes of a job to end; the beginning of a step. Where its node is out of sight, that comes later."""
    if job is not None and job.state in JOB_ACTIVE and sight.is_away(job.node):
        return Satisfied(sight.left(job.node))
    if job is None or (runs.end_job(job, "TERM") == 0 and job.state not in JOB_ACTIVE):
        return Satisfied(_("not running"))
    return Waiting(_("asked it to end"))


def ended(step: Step, job: Job | None) -> Done | Waiting:
    """Over when no process is left. TERM alone is not enough: a vLLM that is starting can ignore it for ever.

    Over as well once the node is out of sight: others need not wait, and whoever looks after jobs ends this one later.
    """
    if job is None:
        return Done()
    if sight.is_away(job.node):
        return Done(sight.left(job.node))
    late = step.started_at is not None and timezone.now() - step.started_at > GRACE
    runner_is_gone = job.fresh().state not in JOB_ACTIVE
    if (late or runner_is_gone) and runs.end_job(job, "KILL") == 0 and runner_is_gone:
        return Done(_("no process is left"))
    return Waiting(_("waiting for its processes to end"))


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
