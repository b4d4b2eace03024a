"""Append-only byte and sample streams over Redis Streams: what may not be lost between a node and a browser.

A log entry's id is the byte offset it ends at (``"4096-0"``), so an offset is the identity of a byte. `append` names
the offset its data starts at and is refused unless the stream ends exactly there: a second reader, a reconnect or a
restart can neither lose nor repeat a byte. Entries older than ``keep`` bytes are trimmed; read those from the node or
the archive.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, cast

import redis
import redis.asyncio
from django.conf import settings
from redis.exceptions import RedisError as RedisError  # what every call here may raise

#: Returns the offset the stream ends at after the call: start + length when it was appended, anything else when not.
_APPEND = """
local key, start, data, keep = KEYS[1], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)
local tail = -1
if #last > 0 then tail = tonumber(string.match(last[1][1], '^(%d+)')) end
if tail >= 0 and tail ~= start then return tail end
local stop = start + string.len(data)
redis.call('XADD', key, string.format('%.0f-0', stop), 'd', data, 't', ARGV[5])
if stop > keep then redis.call('XTRIM', key, 'MINID', string.format('%.0f-0', stop - keep)) end
redis.call('EXPIRE', key, tonumber(ARGV[4]))
return stop
"""
_WEEK = 7 * 24 * 3600


class Chunk(NamedTuple):
    """Bytes of a log and the offset of the first one. ``at``: when they came, ms since 1970; 0 where nobody knows."""

    start: int
    data: bytes
    at: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def beyond(self, position: int) -> Chunk:
        """The part of it from ``position`` on."""
        cut = position - self.start
        return self if cut <= 0 else Chunk(position, self.data[cut:], self.at)


@lru_cache(maxsize=1)
def client() -> redis.Redis:
    """This process's connection pool to Redis (binary replies)."""
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=10, socket_connect_timeout=5)


def async_client() -> redis.asyncio.Redis:
    """A new asynchronous connection pool; the caller closes it."""
    return redis.asyncio.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=5)


def count(name: str, add: int = 0, seconds: int = 60) -> int:
    """A counter that forgets ``seconds`` after its first count. Counts nothing while Redis is away."""
    try:
        if not add:
            return int(cast(bytes | None, client().get(name)) or 0)
        pipe = client().pipeline()
        pipe.incrby(name, add)
        pipe.expire(name, seconds, nx=True)
        return int(pipe.execute()[0])
    except RedisError:
        return 0


def log_key(job_id: object) -> str:
    return f"log:{job_id}"


def append(key: str, start: int, data: bytes, keep: int | None = None) -> int:
    """Append ``data`` that begins at byte ``start``; returns the offset where the stream now ends.

    Refused, with the stream unchanged, unless the stream is empty or ends exactly at ``start``: then the returned
    offset is not ``start + len(data)``, and the caller goes on reading from it.
    """
    if not data:
        return start
    kept = settings.LOG_STREAM_BYTES if keep is None else keep
    arguments: list[bytes | int] = [start, data, kept, _WEEK, int(time.time() * 1000)]
    return int(cast(int, client().eval(_APPEND, 1, key, *arguments)))


def end(key: str) -> int | None:
    """The offset where the stream ends, or None when it is empty or gone."""
    last = cast(list[Any], client().xrevrange(key, count=1))
    return offset(last[0][0]) if last else None


def read(key: str, after: int) -> Iterator[Chunk]:
    """The chunks the stream still has beyond byte ``after``, oldest first, cut so that none begins before it."""
    position = after
    while entries := cast(list[Any], client().xrange(key, min=f"({position}-0", count=64)):
        for entry_id, fields in entries:
            yield _cut(entry_id, fields, after)
        position = offset(entries[-1][0])


async def read_between(connection: redis.asyncio.Redis, key: str, after: int, until: int) -> AsyncGenerator[Chunk]:
    """The chunks the stream still has from byte ``after`` to ``until``, the last of them whole."""
    position = after
    while position < until:
        entries = cast(list[Any], await connection.xrange(key, min=f"({position}-0", count=16))
        if not entries:
            return
        for entry_id, fields in entries:
            chunk = _cut(entry_id, fields, position)
            position = chunk.end
            yield chunk


async def follow(
    connection: redis.asyncio.Redis, key: str, after: int, block_ms: int = 5000
) -> AsyncGenerator[Chunk]:
    """Like `read`, then waits for more. Never ends; cancel it. An empty chunk is yielded after each quiet wait."""
    position = after
    while True:
        answer = await connection.xread({key: f"{position}-0"}, count=64, block=block_ms)
        entries = entries_of(answer)
        if not entries:
            yield Chunk(position, b"")
        for entry_id, fields in entries:
            chunk = _cut(entry_id, fields, position)
            position = chunk.end
            yield chunk


def entries_of(answer: Any) -> list[Any]:
    """The entries of a one-stream XREAD answer, whichever shape the protocol version gives it."""
    if not answer:
        return []
    if isinstance(answer, dict):
        (batches,) = answer.values()
        return [entry for batch in batches for entry in batch] if batches and isinstance(batches[0], list) else batches
    return cast(list[Any], answer[0][1])


def offset(entry_id: bytes) -> int:
    """The byte a log entry ends at, which is its id."""
    return int(entry_id.partition(b"-")[0])


def _cut(entry_id: bytes, fields: dict[bytes, bytes], after: int) -> Chunk:
    stop, data = offset(entry_id), fields[b"d"]
    return Chunk(stop - len(data), data, int(fields.get(b"t", 0))).beyond(after)
