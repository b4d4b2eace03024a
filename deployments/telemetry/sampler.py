"""Asks every server in service for its figures every few seconds; runs beside watch, in one process of however many."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple

import httpx
from django.db import DatabaseError, close_old_connections

from controlplane import streams
from deployments.models import Replica
from deployments.states import ReplicaState
from deployments.telemetry import figures
from deployments.upstream import base_url
from nodes.telemetry import store

log = logging.getLogger(__name__)
EVERY = 3.0
#: A server that does not answer within this is asked again next time.
PATIENCE = 2.0
#: Bytes of an answer that are read.
MOST = 4 << 20
AT_ONCE = 32
_LEASE, _LEASE_SECONDS = "engines:lease", 10
#: A reading that is older says nothing of now.
_STALE = 30.0


class Server(NamedTuple):
    """A replica to be asked."""

    replica: int
    deployment: int
    url: str
    key: str


class Sampler:
    """Keeps the last reading of each replica. ``transport`` is for tests."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.name = uuid.uuid4().hex
        self._transport = transport
        self._before: dict[int, tuple[float, figures.Reading]] = {}

    def run(self, stopping: threading.Event) -> None:
        """Until told to stop. What fails is tried again next time."""
        while not stopping.wait(EVERY):
            try:
                if self._ours():
                    self.look()
            except (streams.RedisError, OSError, DatabaseError) as error:
                log.warning("the servers' figures have to wait: %s", error)
            finally:
                close_old_connections()

    def look(self, now: float | None = None) -> None:
        """Ask each server once and write down what it says."""
        servers = _servers()
        at = time.time() if now is None else now
        answers = asyncio.run(self._ask_all(servers)) if servers else []
        known = {server.replica for server in servers}
        self._before = {replica: kept for replica, kept in self._before.items() if replica in known}
        intervals: dict[int, list[figures.Interval]] = {}
        entries = []
        for server, text in zip(servers, answers, strict=True):
            if text is None:
                continue
            interval = self._since(server.replica, figures.parse(text), at)
            intervals.setdefault(server.deployment, []).append(interval)
            entries.append(_entry(server.replica, "r", [interval], at))
        entries += [_entry(deployment, "e", several, at) for deployment, several in intervals.items()]
        store.add(entries)

    def _since(self, replica: int, reading: figures.Reading, at: float) -> figures.Interval:
        when, before = self._before.get(replica, (0.0, None))
        self._before[replica] = (at, reading)
        return figures.between(before if at - when < _STALE else None, reading, at - when)

    def _ours(self) -> bool:
        """One process asks, however many watch."""
        client = streams.client()
        if not client.set(_LEASE, self.name, nx=True, ex=_LEASE_SECONDS) and client.get(_LEASE) != self.name.encode():
            return False
        client.expire(_LEASE, _LEASE_SECONDS)
        return True

    async def _ask_all(self, servers: Sequence[Server]) -> list[str | None]:
        room = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(transport=self._transport, timeout=PATIENCE, trust_env=False) as client:
            return await asyncio.gather(*(_ask(client, room, server) for server in servers))


async def _ask(client: httpx.AsyncClient, room: asyncio.Semaphore, server: Server) -> str | None:
    """The text of ``/metrics``; None where there is no whole one in time."""
    headers = {"Authorization": f"Bearer {server.key}"}
    body = b""
    try:
        async with room, asyncio.timeout(PATIENCE), client.stream("GET", server.url, headers=headers) as answer:
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > MOST:
                    return None
    except (httpx.HTTPError, TimeoutError, OSError):
        return None
    return body.decode(errors="replace") if answer.status_code == 200 else None


def _servers() -> list[Server]:
    in_service = Replica.objects.filter(state__in=(ReplicaState.READY, ReplicaState.DRAINING))
    asked = in_service.select_related("deployment", "node")
    return [
        Server(one.pk, one.deployment_id, f"{base_url(one)}/metrics", one.deployment.api_key.reveal()) for one in asked
    ]


def _entry(number: int, kind: str, intervals: Sequence[figures.Interval], at: float) -> store.Entry:
    return store.Entry(number, kind, json.dumps(figures.sample(intervals, at), separators=(",", ":")))
