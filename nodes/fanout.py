"""One reader of a log's stream in a process, however many browsers watch it: each has a mailbox of bounded size.

A mailbox that overflows forgets its oldest pieces. Nothing is lost by that: offsets say what is missing, and whoever
reads the mailbox gets it from the stream itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any, cast
from weakref import WeakKeyDictionary

import redis.asyncio

from controlplane import streams
from controlplane.streams import Chunk

#: Bytes waiting for one browser.
MAILBOX_BYTES = 4 << 20
_END = 1 << 62  # behind every byte


class Mailbox:
    """Pieces that came and were not taken yet; the oldest are forgotten when there are too many."""

    def __init__(self) -> None:
        self._pieces: deque[Chunk] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._error: Exception | None = None

    def put(self, chunk: Chunk) -> None:
        self._pieces.append(chunk)
        self._size += len(chunk.data)
        while self._size > MAILBOX_BYTES and len(self._pieces) > 1:
            self._size -= len(self._pieces.popleft().data)
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._arrived.set()

    async def take(self, seconds: float) -> Chunk | None:
        """The oldest piece; None after a quiet wait. Raises what ended the reader of the stream."""
        if not self._pieces:
            try:
                async with asyncio.timeout(seconds):
                    await self._arrived.wait()
            except TimeoutError:
                return None
        if not self._pieces and self._error is not None:
            raise self._error
        self._arrived.clear()
        if not self._pieces:
            return None
        chunk = self._pieces.popleft()
        self._size -= len(chunk.data)
        if self._pieces or self._error is not None:
            self._arrived.set()
        return chunk


class _Reader:
    """Follows one stream from its end on, for all mailboxes that are open."""

    def __init__(self, key: str) -> None:
        self.mailboxes: set[Mailbox] = set()
        self.task = asyncio.create_task(self._read(key))

    async def _read(self, key: str) -> None:
        try:
            async with streams.async_client() as connection:
                last = cast(list[Any], await connection.xrevrange(key, count=1))
                position = streams.offset(last[0][0]) if last else 0
                async for chunk in streams.follow(connection, key, position):
                    for mailbox in self.mailboxes if chunk.data else ():
                        mailbox.put(chunk)
        except (OSError, streams.RedisError) as error:
            for mailbox in self.mailboxes:
                mailbox.fail(error)


_readers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Reader]] = WeakKeyDictionary()


async def follow(
    connection: redis.asyncio.Redis, key: str, after: int, quiet_seconds: float
) -> AsyncGenerator[Chunk]:
    """What the stream has beyond byte ``after``, then what comes; as `streams.follow`, and as bound to be cancelled.

    A chunk may begin later than the one before it ended: the stream does not have what is between any more.
    """
    mailbox, position = Mailbox(), after
    reader = _open(key, mailbox)
    try:
        async for chunk in streams.read_between(connection, key, position, _END):
            position = chunk.end
            yield chunk
        while True:
            found = await mailbox.take(quiet_seconds)
            # What the mailbox forgot, or what came before its reader had begun: the stream has it.
            until = found.start if found else _END
            async for chunk in streams.read_between(connection, key, position, until):
                position = chunk.end
                yield chunk
            rest = found.beyond(position) if found else Chunk(position, b"")
            if rest.data or found is None:
                position = max(position, rest.end)
                yield rest
    finally:
        _close(key, reader, mailbox)


def _open(key: str, mailbox: Mailbox) -> _Reader:
    readers = _readers.setdefault(asyncio.get_running_loop(), {})
    reader = readers.get(key)
    if reader is None or reader.task.done():
        reader = readers[key] = _Reader(key)
    reader.mailboxes.add(mailbox)
    return reader


def _close(key: str, reader: _Reader, mailbox: Mailbox) -> None:
    reader.mailboxes.discard(mailbox)
    if not reader.mailboxes:
        reader.task.cancel()
        readers = _readers.get(asyncio.get_running_loop(), {})
        if readers.get(key) is reader:
            del readers[key]
