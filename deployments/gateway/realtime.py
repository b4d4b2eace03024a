"""``/v1/realtime``: a websocket to a model that writes down speech while it is spoken, as vLLM 0.32 has it.

The client names the model in its first ``session.update`` or in the address (``?model=``); only then there is a
server to speak to. What is said after that passes as it is, both ways, and waits for whoever is slow.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import msgspec
from django.utils.translation import gettext_lazy as _

from deployments.gateway import body
from deployments.gateway.client import Broken, ConnectFailed, Limits
from deployments.gateway.errors import ApiError, language_of, not_offered
from deployments.gateway.meter import Count
from deployments.gateway.routes import Replica

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

PATH: Final = "/v1/realtime"
PATIENCE = 30.0  # seconds for the model to be named
LARGEST = 16 * 1024 * 1024  # bytes of one message of a model server
REFUSED, FAILED = 1008, 1011  # a websocket's codes

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    type: str = ""
    model: str | None = None
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Event).decode


async def refuse(scope: Scope, send: Send, error: ApiError) -> None:
    """Instead of a websocket: a refusal as any other, where the server can say it."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": REFUSED})
        return
    headers = [(b"content-type", b"application/json"), *error.headers]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": error.body(language_of(scope["headers"]))})


class Talk:
    """One websocket of a client, which is accepted. `model`, then `relay`; `count` says what it took."""

    def __init__(self, scope: Scope, receive: body.Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._language = language_of(scope["headers"])
        self._query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20)
        self.count = Count(requests=1)

    async def accept(self) -> None:
        """The beginning that vLLM makes: here it is made before it is known who will go on."""
        await self._receive()  # websocket.connect
        await self._send({"type": "websocket.accept"})
        await self._say({"type": "session.created", "id": f"sess-{secrets.token_hex(16)}", "created": int(time.time())})

    async def model(self) -> str:
        """The model that is wanted. Raises `ApiError` when none is named, and `HungUp`."""
        if named := self._query.get("model"):
            return str(named[0])
        async with asyncio.timeout(PATIENCE):
            event = _event(await self._heard())
        if event.type != "session.update" or not event.model:
            sentence = _("The first event must be session.update and name a model.")
            raise ApiError(400, "missing_model", sentence, param="model")
        return event.model

    async def relay(self, replica: Replica, name: str, limits: Limits) -> None:
        """Connect both ends until one leaves. Raises `ApiError`, `UpstreamError`; `HungUp` when it was the client."""
        from websockets.exceptions import ConnectionClosed  # only who speaks pays for it

        async with await _connected(replica, name, limits) as server:
            try:
                async with asyncio.timeout(limits.connect):
                    await server.recv()  # its session.created: the client has had one
                await server.send(_update(name))
                await _first_of(self._up(server, name), self._down(server))
            except ConnectionClosed as error:
                raise Broken("it closed a websocket") from error

    async def fail(self, error: ApiError) -> None:
        """Say why in an event, and close."""
        self.count.errors = 1
        await self._say({"type": "error", "error": error.text(self._language), "code": error.code})
        await self.close(FAILED if error.status >= 500 else REFUSED)

    async def close(self, code: int) -> None:
        with suppress(OSError):  # the client has left
            await self._send({"type": "websocket.close", "code": code})

    async def _say(self, event: object) -> None:
        with suppress(OSError):  # the client has left
            await self._send({"type": "websocket.send", "text": msgspec.json.encode(event).decode()})

    async def _heard(self) -> str:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise body.HungUp
        text: str | None = message.get("text")
        return text if text is not None else message.get("bytes", b"").decode("utf-8", "replace")

    async def _up(self, server: ClientConnection, name: str) -> None:
        while True:
            text = await self._heard()
            # The name that the server knows; to change the model in mid-talk would need another server.
            await server.send(_update(name) if "session.update" in text[:200] else text)

    async def _down(self, server: ClientConnection) -> None:
        async for text in server:
            if isinstance(text, bytes):
                await self._send({"type": "websocket.send", "bytes": text})
                continue
            if '"usage"' in text and (usage := _event(text).usage):
                self.count.prompt_tokens += usage.prompt_tokens
                self.count.completion_tokens += usage.completion_tokens
            await self._send({"type": "websocket.send", "text": text})
        await self.close(server.close_code or 1000)


async def _connected(replica: Replica, name: str, limits: Limits) -> ClientConnection:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus, WebSocketException

    host = f"[{replica.origin.host}]" if ":" in replica.origin.host else replica.origin.host
    key = {"Authorization": f"Bearer {replica.api_key.reveal()}"}
    try:
        return await connect(
            f"ws://{host}:{replica.origin.port}{PATH}", additional_headers=key, open_timeout=limits.connect,
            max_size=LARGEST, proxy=None, compression=None, close_timeout=1,
        )
    except InvalidStatus as error:
        raise not_offered(name, PATH) from error
    except (OSError, WebSocketException) as error:
        raise ConnectFailed("it offers no websocket") from error


def _update(name: str) -> str:
    return msgspec.json.encode({"type": "session.update", "model": name}).decode()


def _event(text: str) -> _Event:
    try:
        return _decode(text)
    except (msgspec.DecodeError, RecursionError):
        return _Event()


async def _first_of(*both: Awaitable[None]) -> None:
    """Run both until one has ended, as that one did."""
    tasks = [asyncio.ensure_future(one) for one in both]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.result()
