"""The world of the gateway's tests: the gateway under a real uvicorn, with keys and routes from memory."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import uvicorn

from controlplane.secrets import Secret
from deployments.gateway.app import Gateway
from deployments.gateway.client import Limits, Origin
from deployments.gateway.directory import View
from deployments.gateway.draining import Look
from deployments.gateway.http import BoundedHttp
from deployments.gateway.keys import Caller, Keyring
from deployments.gateway.limits import Allowance
from deployments.gateway.meter import Count, Counts, Line
from deployments.gateway.routes import Replica, Route

KEY = "qd-a-key-for-tests"
UPSTREAM_KEY = "the-key-of-the-model-server"


class World:
    """What the gateway is told: keys and routes, changed by tests; `poke` makes it look again."""

    def __init__(self, **routes: int | str) -> None:
        self.callers = {hashlib.sha256(KEY.encode()).hexdigest(): Caller(user_id=1, key_id=1)}
        self.routes: dict[str, Route] = {name: route(name, what) for name, what in routes.items()}
        self.fails: Exception | None = None
        self.looks = 0
        self.counted: dict[Line, Count] = {}
        self.poke: Callable[[], None] = lambda: None

    def allow(self, allowance: Allowance) -> None:
        """Limit the key."""
        self.callers = {digest: replace(caller, allowance=allowance) for digest, caller in self.callers.items()}

    def load(self) -> View:
        self.looks += 1
        if self.fails:
            raise self.fails
        return self.load_with(Keyring(dict(self.callers), {1: "mark"}))

    def load_with(self, keyring: Keyring) -> View:
        return View(keyring, dict(self.routes))

    async def listen(self, poked: Callable[[], None]) -> None:
        self.poke = poked
        await asyncio.Event().wait()

    def write(self, counts: Counts) -> None:
        if self.fails:
            raise self.fails
        for line, count in counts.items():
            self.counted.setdefault(line, Count()).add(count)

    def gateway(self, times: Limits | None = None) -> Gateway:
        return Gateway(self.load, self.listen, self.write, times, silent)


def route(name: str, *what: int | str) -> Route:
    """A route to servers on the given ports, or one in the given state without any."""
    ports = [one for one in what if isinstance(one, int)]
    replicas = tuple(Replica(Origin("127.0.0.1", port), Secret(UPSTREAM_KEY), str(port)) for port in ports)
    state = next((one for one in what if isinstance(one, str)), "ready")
    return Route(name, state, 1, replicas)


async def silent(look: Look) -> None:
    """Tells nobody what is on its way."""


App = Callable[[Any, Any, Any], Awaitable[None]]


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[int]:
    """The application under uvicorn, in this event loop; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=BoundedHttp, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.005)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


@asynccontextmanager
async def client_of(app: Gateway, key: str = KEY) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client for a served gateway, sending a key."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with serving(app) as port:
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=10, trust_env=False) as http:
            try:
                yield http
            finally:
                await app.close()


def prompt(model: str = "m", **more: object) -> Mapping[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Who?"}], **more}
