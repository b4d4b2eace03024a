"""Celery tasks: thin, short, repeatable. The stories are in the modules they call."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from celery import Task, shared_task
from django.utils import timezone
from kombu.exceptions import OperationalError

from controlplane import streams
from nodes import logs, runs, signals
from nodes.models import Job
from nodes.remote.errors import HostProblem
from nodes.states import JOB_ACTIVE
from nodes.telemetry import history

log = logging.getLogger(__name__)
_BUSY_SECONDS = 60
WATCH_POKES = "watch:pokes"


def send(task: Task[Any, Any], *args: Any) -> None:
    """Queue a task that is repeated anyway: it expires soon, and a broker that is away is no failure."""
    try:
        task.apply_async(args, expires=30, retry=False)
    except OperationalError as error:
        log.warning("%s%s was not queued, watch will ask again: %s", task.name, args, error)


def poke_watch() -> None:
    """Have watch look for new jobs and nodes now instead of within a second."""
    try:
        streams.client().lpush(WATCH_POKES, 1)
        streams.client().ltrim(WATCH_POKES, 0, 3)
    except streams.RedisError as error:
        log.warning("watch was not poked, it looks within a second anyway: %s", error)


@shared_task
def advance_run(run_id: int) -> None:
    """Advance a run, unless another worker is just doing it; that one looks again when it is told to meanwhile."""
    busy, again = f"advancing:{run_id}", f"advance-again:{run_id}"
    if not streams.client().set(busy, 1, nx=True, ex=_BUSY_SECONDS):
        streams.client().set(again, 1, ex=_BUSY_SECONDS)
        return
    try:
        runs.advance(run_id)
    finally:
        streams.client().delete(busy)
    if streams.client().delete(again):
        send(advance_run, run_id)


@shared_task
def keep_logs() -> None:
    """Keep the logs of ended jobs whose end nobody was told of, a few at a time."""
    lately = timezone.now() - timedelta(days=1)
    ended = Job.objects.exclude(state__in=JOB_ACTIVE).filter(ended_at__gt=lately, log_size__gt=0)
    for job in ended.filter(archive__isnull=True).select_related("node")[:20]:
        try:
            logs.archive(job)
        except HostProblem as error:
            log.warning("the log of %s is not kept yet: %s", job, error)


@shared_task
def roll_up() -> None:
    """Bring the longer history of what was measured up to date."""
    history.roll_up()


@shared_task
def job_over(job_id: str) -> None:
    """A job has ended: keep its log, advance its run, tell whoever else waits for it."""
    job = Job.objects.select_related("node").get(pk=job_id)
    step = getattr(job, "step", None)
    if step is not None:
        runs.advance(step.run_id)
    signals.job_ended.send(Job, job=job)
    logs.archive(job)
