"""Live logs and samples over websockets. A handler that never ends is a task, cancelled when the browser goes."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, cast
from urllib.parse import parse_qs

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.core.exceptions import ObjectDoesNotExist

from controlplane import streams
from controlplane.consumers import UNAUTHORIZED
from controlplane.streams import Chunk
from nodes import fanout, logs
from nodes.models import Job
from nodes.remote.errors import HostProblem
from nodes.states import JOB_ACTIVE
from nodes.telemetry import live

NOT_FOUND = 4404
QUIET_SECONDS = 1.0
#: What a page that names no offset is sent of an older log; it can ask for the rest.
RECENT_BYTES = 1 << 20
#: Of a log at once, from the node: what one command may print.
OLDER_BYTES = 4 << 20


class StreamConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Runs `pump` for a signed-in user until the socket closes."""

    async def connect(self) -> None:
        await self.accept()
        if not self.scope["user"].is_authenticated:
            await self.close(UNAUTHORIZED)
            return
        self.redis = streams.async_client()
        self.task = asyncio.create_task(self._run(self.pump()))

    async def disconnect(self, code: int) -> None:
        if hasattr(self, "task"):
            self.task.cancel()
            await self.redis.aclose()

    async def pump(self) -> None:
        raise NotImplementedError

    async def _run(self, pump: Coroutine[Any, Any, None]) -> None:
        try:
            await pump
        except ObjectDoesNotExist:
            await self.close(NOT_FOUND)
        except (OSError, streams.RedisError):
            await self.close(1013)  # "try again later": the page reconnects and goes on where it was


class TelemetryConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """``/ws/telemetry[?of=s3,w3]``: the newest of these (of all), then what is new. `Mailbox.take` says how it looks.

    One frame a second at most, however many nodes there are.
    """

    async def connect(self) -> None:
        await self.accept()
        if not self.scope["user"].is_authenticated:
            await self.close(UNAUTHORIZED)
            return
        self.task = asyncio.create_task(self._run())

    async def disconnect(self, code: int) -> None:
        if hasattr(self, "task"):
            self.task.cancel()

    async def _run(self) -> None:
        box: live.Mailbox | None = None
        try:
            box = await live.hub.open(self._wanted())
            await self._send_all(box)
        except (OSError, streams.RedisError):
            await self.close(1013)
        finally:
            if box is not None:
                live.hub.close(box)

    async def _send_all(self, box: live.Mailbox) -> None:
        failed = asyncio.ensure_future(live.hub.failed.wait())
        try:
            while True:
                news = asyncio.ensure_future(box.take())
                await asyncio.wait((news, failed), return_when=asyncio.FIRST_COMPLETED)
                if failed.done():
                    news.cancel()
                    raise OSError("Redis is away")
                await self.send(text_data=news.result())
                await asyncio.sleep(live.PACE)
        finally:
            failed.cancel()

    def _wanted(self) -> frozenset[str] | None:
        asked = parse_qs(self.scope["query_string"].decode("latin-1")).get("of", [""])[0][:8000]
        return frozenset(asked.split(",")) if asked else None


class LogConsumer(StreamConsumer):
    """``/ws/log/<job>?after=<byte>``: the log from that byte on, without loss or repetition, then its end.

    Binary frames: the offset of the first byte, when it came (ms since 1970; 0: not known), 8 bytes each, big-endian;
    then the bytes as they are. Text frames (JSON): ``{"skipped": [from, to]}`` for what is not sent, ``{"times":
    [[offset, ms], …]}`` of bytes to come, ``{"ended": {"state": …, "status": …}}`` once all was sent. With ``&live=1``
    a reader that cannot keep up is told what it skipped rather than sent what is old by now.
    """

    async def pump(self) -> None:
        jobs = Job.objects.select_related("node")
        self.job = await database_sync_to_async(jobs.get)(pk=self.scope["url_route"]["kwargs"]["job_id"])
        query = parse_qs(self.scope["query_string"].decode("latin-1"))
        self.live = query.get("live") == ["1"]
        self.position = await self._first(query.get("after", [""])[0])
        if await self._ended():
            return
        following = fanout.follow(self.redis, streams.log_key(self.job.pk), self.position, QUIET_SECONDS)
        async with aclosing(following):
            async for chunk in following:
                if chunk.data:
                    await self._catch_up(chunk.start)
                    await self._deliver(chunk)
                elif await self._ended():
                    return

    async def _first(self, asked: str) -> int:
        """The byte to begin at: the one asked for, or near the end of a long log."""
        if asked.isdecimal() and len(asked) <= 15:
            return int(asked)
        end = await asyncio.to_thread(streams.end, streams.log_key(self.job.pk)) or self.job.log_size or 0
        first = max(0, end - RECENT_BYTES)
        self.position = 0
        await self._skip(first)
        return first

    async def _catch_up(self, until: int) -> None:
        """Go on to byte ``until``, to which the stream has nothing any more: read it elsewhere, or skip it."""
        if self.live and until - self.position > settings.LOG_STREAM_BYTES:
            await self._skip(until)
        await self._older(until)

    async def _older(self, until: int) -> None:
        """Send what the stream has no longer, or never had, from the node or the archive."""
        if self.position < until:
            found = await database_sync_to_async(logs.times)(self.job, self.position, until)
            if found:
                await self.send(text_data=json.dumps({"times": found}))
        while self.position < until:
            chunk = await self._read(min(OLDER_BYTES, until - self.position))
            if chunk is None or not chunk.data:
                await self._skip(until)
                return
            await self._skip(chunk.start)
            await self._deliver(chunk)

    async def _read(self, size: int) -> Chunk | None:
        try:
            read = database_sync_to_async(logs.read, thread_sensitive=False)
            return cast(Chunk, await read(self.job, self.position, size))
        except HostProblem:
            return None

    async def _skip(self, until: int) -> None:
        if self.position < until:
            await self.send(text_data=json.dumps({"skipped": [self.position, until]}))
            self.position = until

    async def _deliver(self, chunk: Chunk) -> None:
        await self.send(bytes_data=struct.pack(">QQ", chunk.start, chunk.at) + chunk.data)
        self.position = chunk.end

    async def _ended(self) -> bool:
        """Whether the job has ended; sends what is left, then says so."""
        await database_sync_to_async(self.job.refresh_from_db)(fields=["state", "exit_status", "log_size"])
        if self.job.state in JOB_ACTIVE:
            return False
        end = await asyncio.to_thread(streams.end, streams.log_key(self.job.pk))
        if end is not None and self.position < end:
            return False  # the stream still has some of it
        await self._older(self.job.log_size or 0)
        await self.send(text_data=json.dumps({"ended": {"state": self.job.state, "status": self.job.exit_status}}))
        return True
