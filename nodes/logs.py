"""A job's log, wherever its bytes are: the live stream, the archive, or the file on the node."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from datetime import timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from controlplane import streams
from controlplane.streams import Chunk
from nodes.hosts import shared_host
from nodes.models import ArchivedLog, Job, Node
from nodes.remote import job as remote_job
from nodes.remote.errors import HostProblem
from nodes.remote.host import ask
from nodes.states import JOB_ACTIVE, NodeState

log = logging.getLogger(__name__)

PIECE = 1 << 20
#: Between two of the times that are kept of a log, ms.
_TIMES_APART = 1000

Times = list[tuple[int, int]]  # offset, ms since 1970


def place(job: Job) -> str:
    """The job's directory on its node."""
    return remote_job.directory(job.node.root_dir, job.pk)


def read(job: Job, start: int, size: int) -> Chunk:
    """At most ``size`` bytes from byte ``start``: from the archive if it was kept, else from the node.

    The chunk begins later where neither has them any more. Raises `HostProblem` when only the node has them and it
    cannot be reached.
    """
    kept = job.archive.filter(start__lte=start, end__gt=start).first()
    if kept is not None:
        return Chunk(start, gzip.decompress(bytes(kept.data))[start - kept.start :][:size])
    return Chunk(*remote_job.read_log(shared_host(job.node), place(job), start, size))


def times(job: Job, start: int, end: int) -> Times:
    """When the bytes from ``start`` to ``end`` came, as far as the archive knows: offsets with ms since 1970."""
    kept = job.archive.filter(start__lt=end, end__gt=start).values_list("times", flat=True)
    return [(offset, at) for marks in kept for offset, at in marks if offset < end]


def read_all(job: Job, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The log from ``start`` as far as it goes now, or to ``end``, in pieces; what is not kept any more is left out."""
    return (chunk.data for chunk in pieces(job, start, end))


def pieces(job: Job, start: int = 0, end: int | None = None) -> Iterator[Chunk]:
    """As `read_all`, each piece with where it begins."""
    position = start
    while end is None or position < end:
        chunk = read(job, position, PIECE if end is None else min(PIECE, end - position))
        if not chunk.data or (end is not None and chunk.start >= end):
            return
        yield chunk if end is None else Chunk(chunk.start, chunk.data[: end - chunk.start], chunk.at)
        position = chunk.end


def tail(job: Job, size: int = 32768) -> str:
    """The last bytes of the log as text, from the stream while there is one."""
    key = streams.log_key(job.pk)
    end = streams.end(key) or job.log_size or 0
    start = max(0, end - size)
    data = b"".join(chunk.data for chunk in streams.read(key, start)) or read(job, start, size).data
    return data.decode(errors="replace")


def archive(job: Job) -> None:
    """Keep the log of an ended job in the database, its end where it is longer than what is kept of one.

    Repeatable; goes on where an earlier call stopped.
    """
    last = job.archive.order_by("-end").first()
    end = job.log_size or 0
    position = last.end if last else max(0, end - settings.LOG_ARCHIVE_BYTES)
    came = _marks(job, position)
    while position < end:
        chunk = Chunk(*remote_job.read_log(shared_host(job.node), place(job), position, min(PIECE, end - position)))
        if not chunk.data:
            return
        _keep(job, chunk, [(offset, at) for offset, at in came if chunk.start <= offset < chunk.end])
        position = chunk.end


def sweep(limit: int = 200) -> int:
    """Remove what is kept of jobs that ended long ago, on their nodes and here; returns of how many.

    A node out of reach is asked again another time. Raises nothing.
    """
    long_ago = timezone.now() - timedelta(days=settings.LOG_DAYS)
    over = Job.objects.exclude(state__in=JOB_ACTIVE).filter(ended_at__lt=long_ago, swept=False)
    over = over.exclude(node__state=NodeState.UNREACHABLE)  # dead servers' would come first for ever
    jobs = list(over.select_related("node").order_by("ended_at")[:limit])
    return sum(_swept(node, [job for job in jobs if job.node_id == node.pk]) for node in {job.node for job in jobs})


def _swept(node: Node, jobs: list[Job]) -> int:
    try:
        ask(shared_host(node), remote_job.remove([place(job) for job in jobs]))
    except HostProblem as error:
        log.warning("what old jobs left on %s is not removed yet: %s", node, error)
        return 0
    keys = [job.pk for job in jobs]
    ArchivedLog.objects.filter(job__in=keys).delete()
    return Job.objects.filter(pk__in=keys).update(swept=True)


def _marks(job: Job, start: int) -> Times:
    """When what the stream still has came: one time a second at most."""
    found: Times = []
    for chunk in streams.read(streams.log_key(job.pk), start):
        if chunk.at and (not found or chunk.at - found[-1][1] >= _TIMES_APART):
            found.append((chunk.start, chunk.at))
    return found


def _keep(job: Job, chunk: Chunk, came: Times) -> None:
    data = gzip.compress(chunk.data, 5)
    try:
        with transaction.atomic():
            ArchivedLog.objects.create(job=job, start=chunk.start, end=chunk.end, data=data, times=came)
    except IntegrityError:
        pass  # another worker kept this piece meanwhile
