"""What each gateway process has on its way to which model server, so that one that is replaced can end its streams.

A process says so twice a second, in Redis, where it is forgotten seconds after the process is gone. Whoever ends a
model server first takes it out of what is routed, then waits until `drained` says so or patience ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import cast

import redis

from controlplane import streams

log = logging.getLogger(__name__)

EVERY = 0.5  # seconds between two reports of a process
FORGOTTEN = 3  # seconds after which a process that reports no more counts for nothing
_PROCESSES = "quarterdeck:gateways"
_REPORT = "quarterdeck:gateway:"

#: Requests on their way, by the name of the model server (`routes.Replica.server`).
Flights = Counter[str]
#: What a report says: every server that may still be asked, and how much is on its way to it.
Look = Callable[[], dict[str, int]]
Reporter = Callable[[Look], Awaitable[None]]


def in_flight(server: object) -> int:
    """Requests that all gateways have on their way to a model server, named by its job. Raises `RedisError`."""
    return sum(report.get(str(server), 0) for report in _reports())


def drained(server: object, since: timedelta) -> bool:
    """Whether no gateway has or will send anything to a model server any more. Raises `RedisError`.

    ``since``: how long it has been out of the routes. A gateway counts from its last look at them: one that does not
    know of it yet keeps this from being true, and a report that may be from before says nothing. Ask again; without
    any gateway it is true at once.
    """
    reports = _reports()
    return not reports or (since.total_seconds() > FORGOTTEN and not any(str(server) in report for report in reports))


def _reports() -> list[dict[str, int]]:
    """The last report of each process that is alive."""
    client = streams.client()
    known = list(cast(set[bytes], client.smembers(_PROCESSES)))
    if not known:
        return []
    found = cast(list[bytes | None], client.mget([_REPORT + name.decode() for name in known]))
    if gone := [name for name, report in zip(known, found, strict=True) if report is None]:
        client.srem(_PROCESSES, *gone)
    return [json.loads(report) for report in found if report is not None]


def said(routed: Iterable[str], flights: Flights) -> dict[str, int]:
    """The content of a report: what is routed, or has something on its way although it is routed no more."""
    return {**dict.fromkeys(routed, 0), **{name: count for name, count in flights.items() if count}}


async def to_redis(look: Look) -> None:
    """Reports as long as it runs. While Redis is away nobody hears it, and no request suffers."""
    name = uuid.uuid4().hex
    async with streams.async_client() as connection:
        while True:
            try:
                pipe = connection.pipeline()
                pipe.sadd(_PROCESSES, name)
                pipe.set(_REPORT + name, json.dumps(look()), ex=FORGOTTEN)
                await pipe.execute()
            except (redis.RedisError, OSError) as error:
                log.debug("The gateway could not say what is on its way: %s", error)
            await asyncio.sleep(EVERY)
