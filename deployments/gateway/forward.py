"""One request on its way: to the least busy server of its model, and the answer back as it comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from deployments.gateway import body, client, routes, wire
from deployments.gateway.draining import Flights
from deployments.gateway.errors import ApiError, Header, language_of, not_offered
from deployments.gateway.hangup import Line
from deployments.gateway.meter import Count
from deployments.gateway.relay import Relay

log = logging.getLogger(__name__)

#: A server that says so is not well, or in front of one that is not: another one may be.
TRY_ANOTHER = frozenset({502, 503})

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class Call:
    """A request that was let in, and what becomes of it."""

    path: str
    ask: body.Ask
    held: body.Held
    headers: list[Header]  # as the client sent them
    marked: bytes  # the request id
    send: Send
    began: float  # loop time
    line: Line | None = None  # the client's connection, where the server gives it
    extra: list[Header] = field(default_factory=list)  # for the head of the answer
    first: float = 0.0  # loop time of the first byte of the answer's body
    answered: bool = False  # its head has gone to the client
    failed: bool = False
    relay: Relay = field(default_factory=lambda: Relay(events=False, strip=False))

    @property
    def strips_usage(self) -> bool:
        return self.ask.stream and not self.ask.wants_usage and self.path in wire.COMPLETIONS

    def cost(self) -> Count:
        """What is to be counted, once the request has ended."""
        tokens = self.relay.tokens()
        count = Count(
            1, int(self.failed), tokens.prompt, tokens.completion, int(tokens.estimated and self.answered)
        )
        if self.ask.stream and self.first:
            count.ttft_count, count.ttft_ms = 1, round((self.first - self.began) * 1000)
        return count


async def forward(pool: client.Pool, call: Call, route: routes.Route, flights: Flights) -> None:
    """Ask the replicas in turn, the least busy first, until one has begun to answer.

    Raises `ApiError` while nothing was sent to the client; what fails later is said in the stream.
    """
    content = _content(call, route)
    lines = wire.going_up(call.headers)
    tried: list[routes.Replica] = []
    failure: client.UpstreamError | None = None
    while replica := routes.least_busy(route, tried, flights):
        tried.append(replica)
        request = wire.request(
            wire.ENDPOINTS[call.path], replica.origin, replica.api_key, lines, call.marked, content
        )
        flights[replica.server] += 1
        try:
            exchange = await pool.request(replica.origin, request)
            if exchange.status in TRY_ANOTHER and len(tried) < len(route.replicas):
                exchange.abort()
                raise client.Broken(f"it answered {exchange.status}")
            request = content = b""  # from here on nobody else is asked, and a stream may take long
            call.held.let_go()
            return await _exchange(call, route.name, exchange)
        except client.UpstreamError as error:
            failure = error
            log.warning("Model %s at %s:%d: %s.", route.name, *replica.origin, error)
            if isinstance(error, client.TimedOut) or not content:
                break
        finally:
            flights[replica.server] -= 1
    if not call.answered:
        raise unanswered(route.name, failure)
    call.failed = True  # the body stays incomplete, which the client sees


def _content(call: Call, route: routes.Route) -> bytes:
    """The body as the model server is to get it: with the name it knows, asking for what is counted."""
    content = call.held.content
    if call.ask.model != route.name:
        content = body.renamed(content, wire.value_of(call.headers, b"content-type"), route.name)
    return body.with_usage(content) if call.strips_usage else content


async def _exchange(call: Call, name: str, exchange: client.Exchange) -> None:
    """Pass an answer on. Whatever ends this early also ends the request at the model server."""
    try:
        if exchange.status in (401, 403):
            sentence = _(
                "The server of the model “{name}” refused the gateway's key. Roll the deployment out again."
            )
            raise ApiError(502, "model_refused_gateway", format_lazy(sentence, name=name))
        call.failed = exchange.status >= 400
        beginning = await exchange.read() if exchange.status == 404 else None
        if beginning == wire.UNOFFERED:
            raise not_offered(name, call.path)
        await _pass_on(call, name, exchange, beginning)
    finally:
        exchange.abort()


async def _pass_on(call: Call, name: str, exchange: client.Exchange, beginning: bytes | None) -> None:
    """``beginning``: what has been read of the body already."""
    events = wire.value_of(exchange.headers, b"content-type").startswith(b"text/event-stream")
    relay = call.relay = Relay(events, strip=call.strips_usage)
    send, headers = call.send, wire.coming_back(exchange.headers, call.marked, events)
    await send({"type": "http.response.start", "status": exchange.status, "headers": headers + call.extra})
    call.answered = True

    write = call.line.write_body if call.line is not None and events else None

    def sink(data: bytes) -> Awaitable[None] | None:
        data = relay.feed(data)
        if write is not None and write(data):
            return None
        return send({"type": "http.response.body", "body": data, "more_body": True})

    try:
        data = await exchange.read() if beginning is None else beginning
        call.first = asyncio.get_running_loop().time()
        if (wait := sink(data)) is not None:
            await wait
        await exchange.pump(sink)
    except client.UpstreamError as error:
        if not events:
            raise
        log.warning("Model %s: %s.", name, error)
        call.failed = True
        last = b"data: " + unanswered(name, error).body(language_of(call.headers)) + b"\n\n"
        await send({"type": "http.response.body", "body": last})
        return
    await send({"type": "http.response.body", "body": relay.rest()})


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
