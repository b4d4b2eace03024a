"""Under a server that is not ours the gateway keeps to plain ASGI: streams, and hang-ups told by `receive`."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from tests import upstream
from tests.support.gateway_world import KEY, World
from tests.test_gateway import CHAT, endless, within
from tests.upstream import stand_in

Message = MutableMapping[str, Any]
HEADERS = [(b"authorization", f"Bearer {KEY}".encode())]
SCOPE = {"type": "http", "method": "POST", "path": CHAT, "headers": HEADERS, "query_string": b""}
BODY = b'{"model": "m", "stream": true}'


async def test_a_stream_is_sent_whole() -> None:
    arriving: asyncio.Queue[Message] = asyncio.Queue()
    sent: list[Message] = []

    async def send(message: Message) -> None:
        await asyncio.sleep(0)  # as a client that makes it wait
        sent.append(dict(message))

    for part in (BODY[:10], BODY[10:20], BODY[20:]):
        arriving.put_nowait({"type": "http.request", "body": part, "more_body": True})
    arriving.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    async with stand_in(upstream.chat) as server:
        gateway = World(m=server.port).gateway()
        await gateway(dict(SCOPE), arriving.get, send)
        await gateway.close()
    whole = b"".join(message.get("body", b"") for message in sent)
    assert whole == b"".join(upstream.token(word) for word in ("Ada", " Bea", " Çy")) + upstream.DONE
    assert [message.get("more_body", False) for message in sent][-1] is False


async def test_a_hang_up_that_receive_tells_ends_the_stream() -> None:
    arriving: asyncio.Queue[Message] = asyncio.Queue()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            arriving.put_nowait({"type": "http.disconnect"})
        await asyncio.sleep(0)

    arriving.put_nowait({"type": "http.request", "body": BODY, "more_body": False})
    async with stand_in(endless) as server:
        gateway = World(m=server.port).gateway()
        async with asyncio.timeout(5):
            await gateway(dict(SCOPE), arriving.get, send)
        await within(1, server.hung_up)
        await gateway.close()
