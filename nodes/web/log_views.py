"""A job's log as a download, and a piece of it for the viewer."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import chain

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_safe

from nodes import logs
from nodes.models import Job

_LARGEST_PIECE = 4 << 20


@require_safe
def job_log(request: HttpRequest, job_id: uuid.UUID) -> HttpResponseBase:
    """The whole log as a text file, byte for byte; with ``start`` and ``end`` at most 4 MiB of it, for a viewer."""
    job = get_object_or_404(Job, pk=job_id)
    asked = [request.GET.get(name, "") for name in ("start", "end")]
    if all(re.fullmatch(r"[0-9]{1,15}", offset) for offset in asked):
        return _piece(job, *map(int, asked))
    pieces: Iterator[bytes] = logs.read_all(job)
    pieces = chain([next(pieces, b"")], pieces)  # a host out of reach says so before the download begins
    # Under ASGI a plain iterator would be drained into memory first; a log may be gigabytes.
    content = _in_thread(pieces) if isinstance(request, ASGIRequest) else pieces
    response = StreamingHttpResponse(content, content_type="text/plain; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="{job.pk}.log"'
    return response


def _piece(job: Job, start: int, end: int) -> HttpResponse:
    """The bytes from ``start`` to ``end``; ``X-Log-Start`` says where those begin that are still kept."""
    found = list(logs.pieces(job, start, min(end, start + _LARGEST_PIECE)))
    response = HttpResponse(b"".join(piece.data for piece in found), content_type="text/plain; charset=utf-8")
    response.headers["X-Log-Start"] = str(found[0].start if found else start)
    return response


async def _in_thread(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    iterator = iter(pieces)
    read = sync_to_async(lambda: next(iterator, None))
    while (piece := await read()) is not None:
        yield piece
