"""Keys and routes in this process's memory: neither the database nor Redis is on the path of a request.

A poke over Redis makes it look again at once; without one it looks again after `EXPIRY` seconds. While the
database is away the last view stays in use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from django.db import Error, close_old_connections
from django.utils.translation import gettext_lazy as _

from controlplane import streams
from deployments.gateway import keys, routes
from deployments.gateway.errors import ApiError

log = logging.getLogger(__name__)

EXPIRY = 5.0  # seconds after which a view is renewed without a poke
BETWEEN = 0.2  # seconds between two looks into the database, however many ask
PATIENCE = 5.0  # seconds a request waits for the first view


@dataclass(frozen=True)
class View:
    """What the gateway knows."""

    keyring: keys.Keyring
    routes: routes.Routes


Loader = Callable[[], View]
Listener = Callable[[Callable[[], None]], Awaitable[None]]


def from_database() -> View:
    """The view that the database gives now."""
    close_old_connections()
    try:
        return View(keys.load(), routes.load())
    finally:
        close_old_connections()


async def from_redis(poked: Callable[[], None]) -> None:
    """Calls ``poked`` for each poke, and after each reconnect: one may have been missed. Never returns."""
    while True:
        try:
            await _listen(poked)
        except (redis.RedisError, OSError) as error:
            log.info("The gateway does not hear pokes (%s); it looks again every %d seconds.", error, EXPIRY)
        await asyncio.sleep(1)


async def _listen(poked: Callable[[], None]) -> None:
    async with streams.async_client() as connection, connection.pubsub() as channel:
        await channel.subscribe(routes.CHANNEL)
        async for _message in channel.listen():
            poked()


class Directory:
    """The view, kept fresh by two background tasks of the running event loop."""

    def __init__(self, load: Loader = from_database, listen: Listener = from_redis) -> None:
        self._load, self._listen = load, listen
        self._view: View | None = None
        self._wanted = asyncio.Event()
        self._changed = asyncio.Condition()
        self._started_at = 0.0  # loop time at which the view at hand was begun to be read
        # A thread of its own: one database connection, and no waiting behind Django's views.
        self._thread = ThreadPoolExecutor(1, "gateway-directory")
        self._tasks: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(self._keep_fresh()),
            asyncio.ensure_future(listen(self._wanted.set)),
        ]

    def servers(self) -> set[str]:
        """The model servers that may be asked now."""
        known = self._view.routes.values() if self._view else ()
        return {replica.server for route in known for replica in route.replicas}

    async def view(self) -> View:
        """What is known now. Waits only for the very first look; raises `ApiError` when that fails."""
        return self._view or await self.newer(0.0)

    async def newer(self, than: float) -> View:
        """A view read after loop time ``than``, for a key or model that the one at hand does not have.

        Gives the one at hand when a new one cannot be had in time.
        """
        self._wanted.set()
        try:
            async with asyncio.timeout(PATIENCE if self._view is None else 1.0), self._changed:
                await self._changed.wait_for(lambda: self._view is not None and self._started_at > than)
        except TimeoutError:
            pass
        if self._view is None:
            sentence = _("The gateway cannot read its database. Try again soon.")
            raise ApiError(503, "not_ready", sentence, retry_after=5)
        return self._view

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False)

    async def _keep_fresh(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wanted.clear()
            started_at = loop.time()
            try:
                self._view = await loop.run_in_executor(self._thread, self._load)
                self._started_at = started_at
            except Exception as error:  # the task's boundary: the last view serves on
                unusual = not isinstance(error, Error)
                log.warning("The gateway could not read keys and routes: %s", error, exc_info=unusual)
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(BETWEEN)
            await self._until_wanted()

    async def _until_wanted(self) -> None:
        try:
            async with asyncio.timeout(EXPIRY - BETWEEN):
                await self._wanted.wait()
        except TimeoutError:
            pass
