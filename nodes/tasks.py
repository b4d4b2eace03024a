"""Celery tasks: thin, short, repeatable. The stories are in the modules they call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from celery import Task, shared_task
from django.utils import timezone
from kombu.exceptions import OperationalError

from controlplane import streams
from nodes import logs, runs, signals
from nodes.models import Batch, Job
from nodes.remote.errors import HostProblem
from nodes.states import JOB_ACTIVE, NodeState
from nodes.telemetry import history

log = logging.getLogger(__name__)
#: How long a run stands still after the worker that was advancing it was killed.
_LEASE_SECONDS = 9
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
    if not streams.client().set(busy, 1, nx=True, ex=_LEASE_SECONDS):
        streams.client().set(again, 1, ex=60)
        return
    with _renewed(busy):
        runs.advance(run_id)
    if streams.client().delete(again):
        send(advance_run, run_id)


@contextmanager
def _renewed(lease: str) -> Iterator[None]:
    """Keep a lease for as long as this takes and this process lives, and give it back."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(_LEASE_SECONDS / 3):
            with suppress(streams.RedisError):
                streams.client().expire(lease, _LEASE_SECONDS)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        streams.client().delete(lease)


@shared_task
def advance_batch(batch_id: int) -> None:
    """Go on with servers that are being registered."""
    from nodes import batches

    with suppress(Batch.DoesNotExist):  # an old one, which was just deleted
        batches.advance(batch_id)


@shared_task
def sweep_batches() -> None:
    """Go on with, give up or forget what is left of registrations."""
    from nodes import batches

    batches.sweep()


@shared_task
def keep_logs() -> None:
    """Keep the logs of ended jobs whose end nobody was told of, a few at a time."""
    lately = timezone.now() - timedelta(days=1)
    ended = Job.objects.exclude(state__in=JOB_ACTIVE).filter(ended_at__gt=lately, log_size__gt=0)
    ended = ended.exclude(node__state=NodeState.UNREACHABLE)  # dead servers' would come first for ever
    for job in ended.filter(archive__isnull=True).select_related("node")[:20]:
        try:
            logs.archive(job)
        except HostProblem as error:
            log.warning("the log of %s is not kept yet: %s", job, error)


@shared_task
def sweep_logs() -> None:
    """Remove what is kept of jobs that ended long ago."""
    logs.sweep()


@shared_task
def roll_up() -> None:
    """Bring the longer history of what was measured up to date."""
    history.roll_up()


@shared_task
def job_over(job_id: str) -> None:
    """A job has ended: keep its log, advance its run, tell whoever else waits for it."""
    job = Job.objects.select_related("node").filter(pk=job_id).first()
    step = getattr(job, "step", None)
    if step is not None:
        advance_run(step.run_id)  # under its lease: two that push the same wheel at once spoil it for each other
    if job is None or not Job.objects.filter(pk=job_id).exists():
        return  # its run was the removal of the node, and all that is known of that is gone
    signals.job_ended.send(Job, job=job)
    logs.archive(job)
