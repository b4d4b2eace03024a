"""What requests may take together, and what they may ask for besides an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource

import pytest

from deployments.gateway import body
from deployments.gateway.app import MOST_FILES
from tests import upstream
from tests.support.gateway_world import KEY, World, client_of, prompt
from tests.test_gateway_faults import CHAT, MEGABYTE, error_of
from tests.upstream import Asked, StandIn, stand_in


async def test_large_requests_take_no_more_room_together_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is let go of when its answer begins, or when its client leaves."""
    monkeypatch.setattr(body, "ALTOGETHER", 5 * MEGABYTE)

    async def waits(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.json["begins"]:
            await server.send(writer, upstream.HEAD % b"text/event-stream")
        await asyncio.Event().wait()

    def large(begins: bool) -> object:
        return prompt(stream=True, begins=begins, note="x" * 2 * MEGABYTE)

    async with (
        stand_in(waits) as server,
        client_of(World(m=server.port).gateway()) as client,
        contextlib.AsyncExitStack() as streams,
        asyncio.timeout(20),
    ):

        async def begun() -> int:
            return (await streams.enter_async_context(client.stream("POST", CHAT, json=large(True)))).status_code

        assert [await begun() for _ in range(4)] == [200] * 4
        silent = [asyncio.ensure_future(client.post(CHAT, json=large(False))) for _ in range(2)]
        while len(server.asked) < 6:
            await asyncio.sleep(0.01)
        refused = await client.post(CHAT, json=large(False))
        assert error_of(refused, 503)["code"] == "too_much_at_once"
        assert refused.headers["retry-after"] == "2"
        silent[0].cancel()
        await server.hung_up.wait()
        assert await begun() == 200
        silent[1].cancel()


@pytest.mark.parametrize("upgrade", [
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIG5vbmNl\r\n",
])
async def test_a_client_that_asks_for_an_upgrade_is_answered_as_without_it(upgrade: str) -> None:
    content = json.dumps(prompt()).encode()
    lines = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nX-Note: kept\r\nContent-Length: {len(content)}\r\n{upgrade}"
    async with stand_in(upstream.chat) as server:
        gateway = World(m=server.port).gateway()
        async with client_of(gateway) as client:
            reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            for _twice in range(2):  # on one connection
                writer.write(f"POST {CHAT} HTTP/1.1\r\n{lines}\r\n".encode() + content[:9])
                await writer.drain()
                await asyncio.sleep(0.02)  # the rest comes by itself
                writer.write(content[9:])
                async with asyncio.timeout(5):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
                    assert b"Ada Bea Cy" in await reader.readexactly(int(length))
                assert head.startswith(b"HTTP/1.1 200 ")
            writer.close()
    assert [asked.body for asked in server.asked] == [content] * 2
    assert server.asked[0].headers["x-note"] == "kept"
    assert "upgrade" not in server.asked[0].headers


async def test_a_small_limit_on_files_is_raised_as_far_as_it_may_be() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (900, before[1]))
    try:
        async with client_of(World(m=1).gateway()) as client:
            await client.get("/v1/models")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (soft, hard) == (min(before[1], MOST_FILES), before[1])


async def test_a_client_that_asks_for_a_tunnel_is_refused() -> None:
    async with client_of(World(m=1).gateway()) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(f"CONNECT somewhere:443 HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
