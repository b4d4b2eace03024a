"""Samples in Redis: an hour of each source (a stream), what is newest for the web processes, and who holds GPUs."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, NamedTuple, cast

import redis.asyncio
from django.conf import settings

from controlplane import streams
from nodes.telemetry.sample import Sample

#: What came in the last seconds: fields ``s<node>`` (a sample), ``w<node>`` (who holds its GPUs), and of other kinds
#: ``<kind><number>`` (a sample of something else that is measured, as ``e`` and ``r`` of servers on nodes).
FLEET = "telemetry:fleet"
#: What was said last, by number and by name.
HOLDERS, OTHERS = "telemetry:holders", "telemetry:others"
#: A stream that nobody writes to any more is gone after so many seconds.
FORGOTTEN = 2 * 3600
_FLEET_ENTRIES = 120


class Entry(NamedTuple):
    """What was said: a node's sample (kind "s"), who holds its GPUs ("w"), another sample (another letter); as JSON."""

    number: int
    kind: str
    text: str


def node_key(node_id: int) -> str:
    return f"metrics:{node_id}"


def other_key(kind: str, number: int) -> str:
    return f"measured:{kind}{number}"


def add(entries: Iterable[Entry]) -> None:
    """Write down what was said, of however many, in one round trip."""
    pipe = streams.client().pipeline(transaction=False)
    newest: dict[str, str] = {}
    for number, kind, text in entries:
        newest[f"{kind}{number}"] = text
        if kind != "w":
            key = node_key(number) if kind == "s" else other_key(kind, number)
            pipe.xadd(key, {"s": text}, maxlen=settings.METRICS_STREAM_SAMPLES, approximate=True)
        if kind == "w":
            pipe.hset(HOLDERS, str(number), text)
        elif kind != "s":
            pipe.hset(OTHERS, f"{kind}{number}", text)
    if newest:
        pipe.xadd(FLEET, cast(Any, newest), maxlen=_FLEET_ENTRIES, approximate=True)
        pipe.execute()


def newest(keys: Sequence[str]) -> list[Sample | None]:
    """The newest sample of each stream, in one round trip."""
    if not keys:
        return []
    pipe = streams.client().pipeline(transaction=False)
    for key in keys:
        pipe.xrevrange(key, count=1)
    return [json.loads(entries[0][1][b"s"]) if entries else None for entries in pipe.execute()]


def newest_of_nodes(node_ids: Sequence[int]) -> dict[int, Sample]:
    """The newest sample of each node that has one."""
    found = zip(node_ids, newest([node_key(one) for one in node_ids]), strict=True)
    return {node_id: sample for node_id, sample in found if sample is not None}


def silence(node_ids: Sequence[int]) -> dict[int, float]:
    """Seconds since each node was heard of, by Redis's own clock; not of those that never were."""
    pipe = streams.client().pipeline(transaction=False)
    for one in node_ids:
        pipe.xrevrange(node_key(one), count=1)
    pipe.time()
    *found, (seconds, micros) = pipe.execute()
    last = {one: entries[0][0] for one, entries in zip(node_ids, found, strict=True) if entries}
    return {one: seconds + micros / 1e6 - int(entry.partition(b"-")[0]) / 1e3 for one, entry in last.items()}


def holders() -> dict[int, list[list[Any]]]:
    """Who holds the GPUs of each node, as it last said."""
    return {int(node): rows for node, rows in _last_said(HOLDERS).items()}


def others() -> dict[str, Sample]:
    """The newest sample of everything that is measured besides nodes, by name ("e5")."""
    return _last_said(OTHERS)


def _last_said(key: str) -> dict[str, Any]:
    said = cast(dict[bytes, bytes], streams.client().hgetall(key))
    return {name.decode(): json.loads(text) for name, text in said.items()}


def between(key: str, since: float, until: float = 0.0) -> list[Sample]:
    """The samples that came from second ``since`` on and before ``until`` (0: now), oldest first."""
    last = f"({int(until * 1000)}-0" if until else "+"
    entries = cast(list[Any], streams.client().xrange(key, f"{int(since * 1000)}-0", last))
    return [json.loads(fields[b"s"]) for _, fields in entries]


def keep(keys: Iterable[str]) -> None:
    """Say that these streams are all that are written to: others go after `FORGOTTEN`, what they said last now."""
    known = set(keys)
    pipe = streams.client().pipeline(transaction=False)
    for key in known:
        pipe.expire(key, FORGOTTEN)
    for last, stream_of in ((HOLDERS, "metrics:"), (OTHERS, "measured:")):
        for name in _last_said(last):
            if stream_of + name not in known:
                pipe.hdel(last, name)
    pipe.execute()


async def follow(connection: redis.asyncio.Redis) -> AsyncGenerator[dict[str, str]]:
    """What is said from now on: as the fields of `FLEET`, by name → JSON. Never ends; cancel it."""
    position = "$"
    while True:
        answer = await connection.xread({FLEET: position}, count=20, block=5000)
        for entry_id, fields in streams.entries_of(answer):
            position = entry_id.decode()
            yield {name.decode(): text.decode() for name, text in fields.items()}
