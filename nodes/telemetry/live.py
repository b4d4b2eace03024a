"""The newest samples for the pages of this process: read from Redis once, handed to each page at its own pace.

A page that is slow holds up nobody: what waits for it is the set of names that it has not seen the newest sample of,
and it is told how many samples it was not sent. They are in `store`, and `history` answers for them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from channels.db import database_sync_to_async

from controlplane import streams
from nodes.models import Node
from nodes.telemetry import store

#: Seconds between two messages to one page.
PACE = 1.0
#: See `store.FLEET`: nodes, who holds their GPUs, deployments, replicas.
KINDS = "swer"


class Mailbox:
    """What one page has not been sent yet, of some names (as "s3", see `store.FLEET`) or of all (None)."""

    def __init__(self, hub: Hub, wanted: Collection[str] | None) -> None:
        self._hub, self._wanted = hub, wanted
        self._due: dict[str, None] = {}
        self._skipped = 0
        self._news = asyncio.Event()
        self.put(hub.newest, first=True)

    def put(self, names: Collection[str], first: bool = False) -> None:
        """Note that these have something new. One that is still due had something that will never be sent."""
        for name in names:
            if self._wanted is None or name in self._wanted:
                self._skipped += not first and name in self._due and name[0] != "w"
                self._due[name] = None
        if self._due:
            self._news.set()

    async def take(self) -> str:
        """The next message, once there is one: ``{"s": {node: sample}, "w": {…}, "e": {…}, "skipped": n}``."""
        await self._news.wait()
        self._news.clear()
        names, self._due = self._due, {}
        skipped, self._skipped = self._skipped, 0
        parts = "".join(f'"{kind}":{{{self._part(kind, names)}}},' for kind in KINDS)
        return f'{{{parts}"skipped":{skipped}}}'

    def _part(self, kind: str, names: Collection[str]) -> str:
        newest = self._hub.newest
        return ",".join(f'"{name[1:]}":{newest[name]}' for name in names if name[0] == kind and name in newest)


class Hub:
    """One reader of Redis, running while a page is open."""

    def __init__(self) -> None:
        self.newest: dict[str, str] = {}  # by name, as JSON
        self._boxes: set[Mailbox] = set()
        self._reader: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed: asyncio.Event = asyncio.Event()

    async def open(self, wanted: Collection[str] | None) -> Mailbox:
        """A mailbox with the newest of these names in it (None: of all). Raises `RedisError` or `OSError`."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._reader, self._boxes = loop, None, set()
        if self._reader is None or self._reader.done():
            self.newest = await database_sync_to_async(_read_newest, thread_sensitive=False)()
            self.failed = asyncio.Event()
            if self._reader is None or self._reader.done():  # nobody else began it meanwhile
                self._reader = asyncio.create_task(self._read(self.failed))
        box = Mailbox(self, wanted)
        self._boxes.add(box)
        return box

    def close(self, box: Mailbox) -> None:
        self._boxes.discard(box)
        if not self._boxes and self._reader is not None:
            self._reader.cancel()
            self._reader = None

    async def _read(self, failed: asyncio.Event) -> None:
        connection = streams.async_client()
        try:
            async for news in store.follow(connection):
                self.newest.update(news)
                for box in self._boxes:
                    box.put(news)
        except (streams.RedisError, OSError):
            pass  # every page is closed "try again later", and comes back
        finally:
            failed.set()
            with suppress(streams.RedisError, OSError):
                await connection.aclose()


def _read_newest() -> dict[str, str]:
    """As of now, of the nodes there are and of what else is measured."""
    ids = list(Node.objects.values_list("pk", flat=True))
    named: dict[str, Any] = {**store.others()}
    named |= {f"s{node}": sample for node, sample in store.newest_of_nodes(ids).items()}
    named |= {f"w{node}": rows for node, rows in store.holders().items() if node in ids}
    return {name: json.dumps(value, separators=(",", ":")) for name, value in named.items()}


hub = Hub()
