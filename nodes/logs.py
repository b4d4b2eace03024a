"""A job's log, wherever its bytes are: the live stream, the archive, or the file on the node."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

from django.db import IntegrityError, transaction

from controlplane import streams
from nodes.hosts import shared_host
from nodes.models import ArchivedLog, Job
from nodes.remote import job as remote_job

PIECE = 1 << 20
#: What the archive keeps of one log: its beginning and, beyond this many bytes, nothing. The node keeps the rest.
ARCHIVE_LIMIT = 64 << 20


def place(job: Job) -> str:
    """The job's directory on its node."""
    return remote_job.directory(job.node.root_dir, job.pk)


def read(job: Job, start: int, size: int) -> bytes:
    """At most ``size`` bytes from byte ``start``: from the archive if it was kept, else from the node.

    Raises `HostProblem` when only the node has them and it cannot be reached.
    """
    kept = job.archive.filter(start__lte=start, end__gt=start).first()
    if kept is not None:
        return gzip.decompress(bytes(kept.data))[start - kept.start :][:size]
    return remote_job.read_log(shared_host(job.node), place(job), start, size)


def read_all(job: Job) -> Iterator[bytes]:
    """The whole log as far as it goes now, in pieces."""
    position = 0
    while data := read(job, position, PIECE):
        yield data
        position += len(data)


def tail(job: Job, size: int = 32768) -> str:
    """The last bytes of the log as text, from the stream while there is one."""
    key = streams.log_key(job.pk)
    end = streams.end(key) or job.log_size or 0
    start = max(0, end - size)
    data = b"".join(chunk.data for chunk in streams.read(key, start)) or read(job, start, size)
    return data.decode(errors="replace")


def archive(job: Job) -> None:
    """Keep the log of an ended job in the database. Repeatable; goes on where an earlier call stopped."""
    last = job.archive.order_by("-end").first()
    position = last.end if last else 0
    end = min(job.log_size or 0, ARCHIVE_LIMIT)
    while position < end:
        data = remote_job.read_log(shared_host(job.node), place(job), position, min(PIECE, end - position))
        if not data:
            return
        _keep(job, position, data)
        position += len(data)


def _keep(job: Job, start: int, data: bytes) -> None:
    try:
        with transaction.atomic():
            ArchivedLog.objects.create(job=job, start=start, end=start + len(data), data=gzip.compress(data, 5))
    except IntegrityError:
        pass  # another worker kept this piece meanwhile
