"""The gateway: a bare ASGI application for ``/v1``, OpenAI-compatible, in front of every deployment.

It stands beside Django, not in it: a request costs one look into memory for its key and one for its model,
then bytes pass through unparsed. What it refuses, it refuses in OpenAI's shape with a next step.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from deployments.gateway import body, client, directory, keys, routes, wire
from deployments.gateway.errors import ApiError, Header, Text, language_of
from deployments.gateway.hangup import UntilHangUp
from deployments.gateway.relay import Relay

log = logging.getLogger(__name__)

HEADERS_LIMIT = 32 * 1024  # bytes of a request's header lines

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class Call:
    """One request on its way through."""

    path: str
    ask: body.Ask
    content: bytes
    lines: bytes  # the client's header lines that go up
    marked: bytes  # the request id
    headers: list[Header]
    send: Send
    answered: bool = False  # the first byte has gone to the client

    @property
    def strips_usage(self) -> bool:
        return self.ask.stream and not self.ask.wants_usage and self.path in wire.COMPLETIONS


class Gateway:
    """The ASGI application. Its background tasks start with the first request, in its event loop."""

    def __init__(
        self,
        load: directory.Loader = directory.from_database,
        listen: directory.Listener = directory.from_redis,
        limits: client.Limits | None = None,
    ) -> None:
        self._load, self._listen, self._limits = load, listen, limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._directory: directory.Directory
        self._pool: client.Pool

    async def __call__(self, scope: Scope, receive: body.Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            self._start()
            await self._respond(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 4404})

    async def close(self) -> None:
        """End the background tasks and all connections. A later request starts them again."""
        if self._loop is not None:
            self._loop = None
            self._directory.close()
            self._pool.close()

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            gc.freeze()  # what was imported stays: walking through it again and again would stop all streams
            self._directory = directory.Directory(self._load, self._listen)
            self._pool = client.Pool(self._limits)

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
        if sum(len(name) + len(value) for name, value in headers) > HEADERS_LIMIT:
            sentence = _("The request's headers are larger than 32 kB. Send fewer.")
            raise ApiError(431, "headers_too_large", sentence)
        view = await self._identify(headers)
        path: str = scope["path"]
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _expect(scope, "GET")
            await send_json(send, 200, models(path, view.routes), [(b"x-request-id", marked)])
            return
        if path not in wire.ENDPOINTS:
            raise ApiError(404, "unknown_path", format_lazy(_("There is no {path} here."), path=path[:200]))
        _expect(scope, "POST")
        content = await body.read(receive, wire.value_of(headers, b"content-length"))
        ask = body.understand(content, wire.value_of(headers, b"content-type"))
        route = await self._find(ask.model, view)
        call = Call(path, ask, content, wire.going_up(headers), marked, headers, send)
        async with UntilHangUp(receive):
            await self._forward(call, route)

    async def _identify(self, headers: list[Header]) -> directory.View:
        """The view in which the request's key is known. Raises `ApiError` when it is not."""
        plain, asked = keys.presented(headers), asyncio.get_running_loop().time()
        view = await self._directory.view()
        caller = keys.find(plain, view.keyring, time.time())
        if caller is None and keys.plausible(plain):  # perhaps made a moment ago
            view = await self._directory.newer(asked)
            caller = keys.find(plain, view.keyring, time.time())
        if caller is None:
            raise keys.wrong()
        return view

    async def _find(self, model: str, view: directory.View) -> routes.Route:
        route = view.routes.get(model)
        if route is None or not route.serves:  # perhaps it became ready a moment ago
            view = await self._directory.newer(asyncio.get_running_loop().time())
        return routes.find(view.routes, model)

    async def _forward(self, call: Call, route: routes.Route) -> None:
        """Ask the replicas in turn, the least busy first, until one has begun to answer."""
        content = body.with_usage(call.content) if call.strips_usage else call.content
        tried: list[routes.Replica] = []
        failure: client.UpstreamError | None = None
        while replica := routes.least_busy(route, tried):
            tried.append(replica)
            upward = wire.request(
                wire.ENDPOINTS[call.path], replica.origin, replica.api_key, call.lines, call.marked, content
            )
            replica.in_flight += 1
            try:
                await self._exchange(call, route, await self._pool.request(replica.origin, upward))
                return
            except (client.ConnectFailed, client.Broken) as error:
                failure = error
                log.warning("Model %s at %s:%d: %s.", route.name, *replica.origin, error)
                if call.answered:
                    return
            except client.TimedOut as error:
                log.warning("Model %s at %s:%d: %s.", route.name, *replica.origin, error)
                raise unanswered(route.name, error) from error
            finally:
                replica.in_flight -= 1
        raise unanswered(route.name, failure)

    async def _exchange(self, call: Call, route: routes.Route, exchange: client.Exchange) -> None:
        """Pass an answer on. Whatever ends this early also ends the request at the model server."""
        try:
            if exchange.status in (401, 403):
                raise ApiError(502, "model_refused_gateway", _refused(route.name))
            await self._pass_on(call, route, exchange)
        finally:
            exchange.abort()

    async def _pass_on(self, call: Call, route: routes.Route, exchange: client.Exchange) -> None:
        events = wire.value_of(exchange.headers, b"content-type").startswith(b"text/event-stream")
        relay = Relay(events, strip=call.strips_usage)
        headers = wire.coming_back(exchange.headers, call.marked, events)
        send = call.send
        await send({"type": "http.response.start", "status": exchange.status, "headers": headers})
        call.answered = True
        try:
            while data := await exchange.read():
                if out := relay.feed(data):
                    await send({"type": "http.response.body", "body": out, "more_body": True})
        except client.UpstreamError as error:
            if not events:
                raise  # the body stays incomplete, which the client sees
            log.warning("Model %s: %s.", route.name, error)
            last = b"data: " + unanswered(route.name, error).body(language_of(call.headers)) + b"\n\n"
            await send({"type": "http.response.body", "body": last})
            return
        await send({"type": "http.response.body", "body": relay.rest()})


async def send_json(send: Send, status: int, content: bytes, headers: list[Header]) -> None:
    """One whole JSON answer."""
    length = str(len(content)).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": content})


def models(path: str, known: routes.Routes) -> bytes:
    """The list of models that are served, or one of them. Raises `ApiError` for one that is not."""
    name = path.removeprefix("/v1/models").strip("/")
    if name:
        return json.dumps(_card(routes.find(known, name))).encode()
    served = [_card(route) for route in known.values() if route.serves]
    return json.dumps({"object": "list", "data": served}).encode()


def _card(route: routes.Route) -> dict[str, object]:
    return {"id": route.name, "object": "model", "created": route.created, "owned_by": "quarterdeck"}


def unanswered(name: str, error: client.UpstreamError | None) -> ApiError:
    """What the client is told when a model's servers failed it."""
    if isinstance(error, client.TimedOut):
        sentence = _("The server of the model “{name}” has been silent for too long. Try again.")
        return ApiError(504, "model_timed_out", format_lazy(sentence, name=name))
    if isinstance(error, client.Broken):
        sentence = _("The server of the model “{name}” broke off its answer. Try again.")
        return ApiError(502, "model_broke_off", format_lazy(sentence, name=name))
    sentence = _("The server of the model “{name}” cannot be reached. Its page shows its state.")
    return ApiError(503, "model_unreachable", format_lazy(sentence, name=name), retry_after=5)


def _refused(name: str) -> Text:
    sentence = _("The server of the model “{name}” refused the gateway's key. Roll the deployment out again.")
    return format_lazy(sentence, name=name)


def _expect(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        sentence = format_lazy(_("This path takes {method} only."), method=method)
        raise ApiError(405, "method_not_allowed", sentence, headers=[(b"allow", method.encode())])


gateway = Gateway()
close = gateway.close
