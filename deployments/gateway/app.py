"""The gateway: a bare ASGI application for ``/v1``, OpenAI-compatible, in front of every deployment.

It stands beside Django, not in it: a request costs one look into memory for its key and one for its model,
then bytes pass through unparsed. What it refuses, it refuses in OpenAI's shape with a next step.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import time
from collections import defaultdict
from collections.abc import MutableMapping
from typing import Any

from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from deployments.gateway import body, client, directory, draining, keys, limits, meter, realtime, routes, wire
from deployments.gateway.errors import ApiError, Header, language_of
from deployments.gateway.forward import Call, Send, forward, unanswered
from deployments.gateway.hangup import Line, UntilHangUp

HEADERS_LIMIT = 32 * 1024  # bytes of a request's header lines
MOST_FILES = 65536

Scope = MutableMapping[str, Any]


class Gateway:
    """The ASGI application. Its background tasks start with the first request, in its event loop.

    Tests give it other sources of keys and routes, another sink for what is counted, and shorter limits.
    """

    def __init__(
        self,
        load: directory.Loader = directory.from_database,
        listen: directory.Listener = directory.from_redis,
        write: meter.Writer = meter.write,
        times: client.Limits | None = None,
        report: draining.Reporter = draining.to_redis,
    ) -> None:
        self._load, self._listen, self._write, self._times, self._report = load, listen, write, times, report
        self._loop: asyncio.AbstractEventLoop | None = None
        self._directory: directory.Directory
        self._meter: meter.Meter
        self._pool: client.Pool
        self._reporting: asyncio.Future[None]
        self._flights = draining.Flights()
        self._room = body.Room()
        self._accounts: defaultdict[tuple[int, int | None], limits.Account] = defaultdict(limits.Account)

    async def __call__(self, scope: Scope, receive: body.Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            self._start()
            await self._respond(scope, receive, send)
        else:
            self._start()
            await self._respond_to_websocket(scope, receive, send)

    async def close(self) -> None:
        """End background tasks and connections, write down what was counted. A request starts all again."""
        if self._loop is not None:
            self._loop = None
            self._reporting.cancel()
            self._directory.close()
            self._pool.close()
            await self._meter.close()

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._directory = directory.Directory(self._load, self._listen)
            self._meter = meter.Meter(self._write)
            self._pool = client.Pool(self._times)
            self._flights = draining.Flights()
            self._reporting = asyncio.ensure_future(self._report(self.on_their_way))
            _calm_collector()
            _allow_many_connections()

    def on_their_way(self) -> dict[str, int]:
        """Every model server that may be asked or is still answering, and how many requests it has."""
        return draining.said(self._directory.servers(), self._flights)

    async def _live(self, receive: body.Receive, send: Send) -> None:
        """Lifespan, for running alone."""
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.shutdown":
                await self.close()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def _respond(self, scope: Scope, receive: body.Receive, send: Send) -> None:
        headers: list[Header] = scope["headers"]
        marked = wire.request_id(headers)
        try:
            await self._answer(scope, headers, marked, receive, send)
        except body.HungUp:
            return
        except ApiError as error:
            given = [(b"x-request-id", marked), *error.headers]
            await send_json(send, error.status, error.body(language_of(headers)), given)

    async def _answer(
        self, scope: Scope, headers: list[Header], marked: bytes, receive: body.Receive, send: Send
    ) -> None:
        began = asyncio.get_running_loop().time()
        if sum(len(name) + len(value) for name, value in headers) > HEADERS_LIMIT:
            sentence = _("The request's headers are larger than 32 kB. Send fewer.")
            raise ApiError(431, "headers_too_large", sentence)
        caller, view = await self._identify(headers)
        path: str = scope["path"]
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _expect(scope, "GET")
            await send_json(send, 200, models(path, view.routes, caller), [(b"x-request-id", marked)])
            return
        if path.startswith("/v1/responses/") and path not in wire.ENDPOINTS:
            sentence = _("Answers are not kept: a response can be read once, as the answer to its own request.")
            raise ApiError(404, "response_not_kept", sentence)
        if path not in wire.ENDPOINTS:
            raise ApiError(404, "unknown_path", format_lazy(_("There is no {path} here."), path=path[:200]))
        _expect(scope, "POST")
        held = await body.read(receive, wire.value_of(headers, b"content-length"), self._room)
        try:
            ask = body.understand(held.content, wire.value_of(headers, b"content-type"))
            limits.check_model(caller.allowance, ask.model, routes.meant(view.routes, ask.model))
            route = await self._find(ask.model, view)
            line: Line | None = scope.get("quarterdeck.line")
            call = Call(path, ask, held, headers, marked, send, began, line)
            await self._let_through(call, caller, route, UntilHangUp(receive, line))
        finally:
            held.let_go()

    async def _respond_to_websocket(self, scope: Scope, receive: body.Receive, send: Send) -> None:
        try:
            if scope["path"] != realtime.PATH:
                sentence = format_lazy(_("There is no {path} here."), path=scope["path"][:200])
                raise ApiError(404, "unknown_path", sentence)
            caller, view = await self._identify(scope["headers"])
        except ApiError as error:
            await realtime.refuse(scope, send, error)
            return
        talk = realtime.Talk(scope, receive, send)
        try:
            await self._talk(talk, caller, view)
        except ApiError as error:
            await talk.fail(error)
        except (body.HungUp, TimeoutError):
            await talk.close(realtime.REFUSED)

    async def _talk(self, talk: realtime.Talk, caller: keys.Caller, view: directory.View) -> None:
        """Serve a websocket within its key's limits, and count what it took, however it ends."""
        await talk.accept()
        model = await talk.model()
        limits.check_model(caller.allowance, model, routes.meant(view.routes, model))
        route = await self._find(model, view)
        account = self._accounts[caller.user_id, caller.key_id]
        account.begin(caller.allowance, caller.used_today, time.time())
        replica = routes.least_busy(route, [], self._flights) or route.replicas[0]
        self._flights[replica.server] += 1
        try:
            await talk.relay(replica, route.name, self._pool.limits)
        except client.UpstreamError as error:
            talk.count.errors = 1
            raise unanswered(route.name, error) from error
        finally:
            self._flights[replica.server] -= 1
            account.end(talk.count.prompt_tokens + talk.count.completion_tokens, time.time())
            self._meter.count(caller.user_id, caller.key_id, route.name, talk.count)

    async def _identify(self, headers: list[Header]) -> tuple[keys.Caller, directory.View]:
        """The caller, and the view that has its key. Raises `ApiError` for a key that is not known."""
        plain, asked = keys.presented(headers), asyncio.get_running_loop().time()
        view = await self._directory.view()
        caller = keys.find(plain, view.keyring, time.time())
        if caller is None and keys.plausible(plain):  # perhaps made a moment ago
            view = await self._directory.newer(asked)
            caller = keys.find(plain, view.keyring, time.time())
        if caller is None:
            raise keys.wrong()
        return caller, view

    async def _find(self, model: str, view: directory.View) -> routes.Route:
        route = view.routes.get(model)
        if route is None or not route.serves:  # perhaps it became ready a moment ago
            view = await self._directory.newer(asyncio.get_running_loop().time())
        return routes.find(view.routes, model)

    async def _let_through(
        self, call: Call, caller: keys.Caller, route: routes.Route, until_hang_up: UntilHangUp
    ) -> None:
        """Forward a request within its key's limits, and count what it took, however it ends."""
        account = self._accounts[caller.user_id, caller.key_id]  # the pages of a user share one
        call.extra = account.begin(caller.allowance, caller.used_today, time.time())
        try:
            async with until_hang_up:
                await forward(self._pool, call, route, self._flights)
        except ApiError:
            call.failed = True
            raise
        finally:
            cost = call.cost()
            account.end(cost.prompt_tokens + cost.completion_tokens, time.time())
            self._meter.count(caller.user_id, caller.key_id, route.name, cost)


def _calm_collector() -> None:
    """Make garbage collection rare: it took a quarter of the time with 512 streams, and stops them all.

    What was imported stays, so it is not walked through again; streams make garbage, but hardly any in cycles.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _allow_many_connections() -> None:
    """Each stream takes two files, and the usual soft limit of 1,024 would end at 500 streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, MOST_FILES) if hard != resource.RLIM_INFINITY else MOST_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def send_json(send: Send, status: int, content: bytes, headers: list[Header]) -> None:
    """One whole JSON answer."""
    length = str(len(content)).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": content})


def models(path: str, known: routes.Routes, caller: keys.Caller) -> bytes:
    """The list of models that are served, or one of them. Raises `ApiError` for one that is not."""
    name = path.removeprefix("/v1/models").strip("/")
    if name:
        limits.check_model(caller.allowance, name, routes.meant(known, name))
        return json.dumps(_card(name, routes.find(known, name))).encode()
    allowed = caller.allowance.models
    served = [
        _card(one, route)
        for one, route in sorted(known.items())
        if route.serves and (not allowed or allowed & {one, route.name})
    ]
    return json.dumps({"object": "list", "data": served}).encode()


def _card(name: str, route: routes.Route) -> dict[str, object]:
    """``root`` is what an alias leads to, as vLLM has it for adapters."""
    return {
        "id": name, "object": "model", "created": route.created, "owned_by": "quarterdeck", "root": route.name,
    }


def _expect(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        sentence = format_lazy(_("This path takes {method} only."), method=method)
        raise ApiError(405, "method_not_allowed", sentence, headers=[(b"allow", method.encode())])


gateway = Gateway()
close = gateway.close
