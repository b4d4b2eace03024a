"""A websocket through the gateway: speech goes up, its words come down, under the key's limits and the model's name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deployments.gateway import realtime
from deployments.gateway.limits import Allowance
from tests import upstream
from tests.support.gateway_world import KEY, UPSTREAM_KEY, World, serving
from tests.upstream import stand_in

Speaks = Callable[[ServerConnection], Awaitable[None]]
DONE = {"type": "transcription.done", "text": "one two", "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


class Listener:
    """A model server that writes down what it hears, as vLLM does; it is asked nothing but this."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.left = asyncio.Event()
        self.port = 0

    async def talk(self, line: ServerConnection) -> None:
        self.keys.append(line.request.headers["Authorization"] if line.request else "")
        await line.send(json.dumps({"type": "session.created", "id": "sess-own", "created": 1}))
        try:
            async for text in line:
                self.heard.append(event := json.loads(text))
                if event["type"] == "input_audio_buffer.commit":
                    await line.send(json.dumps({"type": "transcription.delta", "delta": "one"}))
                    await line.send(json.dumps(DONE))
                if event.get("audio") == "die":
                    line.transport.abort()
        finally:
            self.left.set()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    made = Listener()
    async with serve(made.talk, "127.0.0.1", 0) as server:
        made.port = next(iter(server.sockets)).getsockname()[1]
        yield made


@asynccontextmanager
async def talking(world: World, query: str = "", key: str = KEY) -> AsyncIterator[ClientConnection]:
    """A client's websocket; what it took is counted by the time it is closed."""
    gateway = world.gateway()
    async with serving(gateway) as port:
        address = f"ws://127.0.0.1:{port}/v1/realtime{query}"
        try:
            async with connect(address, additional_headers={"Authorization": f"Bearer {key}"}, proxy=None) as line:
                yield line
            async with asyncio.timeout(5):
                while any(gateway.on_their_way().values()):
                    await asyncio.sleep(0.01)
        finally:
            await gateway.close()


async def say(line: ClientConnection, kind: str, **more: object) -> None:
    await line.send(json.dumps({"type": kind, **more}))


async def hear(line: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(5):
        return dict(json.loads(await line.recv()))


async def test_what_is_spoken_goes_up_and_its_words_come_down_and_are_counted(listener: Listener) -> None:
    world = World(m=listener.port)
    world.routes["whisper-live"] = world.routes["m"]  # an alias
    async with talking(world) as line:
        assert (await hear(line))["type"] == "session.created"
        await say(line, "session.update", model="whisper-live")
        for _twice in range(2):
            await say(line, "input_audio_buffer.append", audio="AAAA" * 100_000)
            await say(line, "input_audio_buffer.commit")
            assert [(await hear(line))["type"] for _ in range(2)] == ["transcription.delta", "transcription.done"]
    assert listener.keys == [f"Bearer {UPSTREAM_KEY}"]
    assert listener.heard[0] == {"type": "session.update", "model": "m"}
    kinds = [event["type"] for event in listener.heard[1:]]
    assert kinds == ["input_audio_buffer.append", "input_audio_buffer.commit"] * 2
    (count,) = world.counted.values()
    assert (count.requests, count.errors, count.prompt_tokens, count.completion_tokens) == (1, 0, 14, 4)


async def test_the_model_may_stand_in_the_address(listener: Listener) -> None:
    async with talking(World(m=listener.port), "?model=m") as line:
        await hear(line)
        await say(line, "input_audio_buffer.commit")
        assert (await hear(line))["type"] == "transcription.delta"


async def test_the_client_that_leaves_takes_its_talk_with_the_server_along(listener: Listener) -> None:
    async with talking(World(m=listener.port), "?model=m") as line:
        await hear(line)
        await say(line, "input_audio_buffer.append", audio="AAAA")
        line.transport.abort()
        async with asyncio.timeout(5):
            await listener.left.wait()


async def failure(line: ClientConnection) -> tuple[str, str, int | None]:
    """The code and words of the error event that ends a talk, and the websocket's code."""
    while (event := await hear(line))["type"] != "error":
        pass
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionClosed):
            await line.recv()
    return event["code"], event["error"], line.close_code


async def test_a_server_that_dies_in_mid_talk_is_said(listener: Listener) -> None:
    world = World(m=listener.port)
    async with talking(world, "?model=m") as line:
        await say(line, "input_audio_buffer.append", audio="die")
        code, words, closed = await failure(line)
    assert (code, closed) == ("model_broke_off", realtime.FAILED)
    assert "broke off" in words
    (count,) = world.counted.values()
    assert count.errors == 1


@pytest.mark.parametrize(("query", "first", "code"), [
    ("?model=nothing", None, "model_not_found"), ("?model=gone", None, "model_not_running"),
    ("", {"type": "input_audio_buffer.commit"}, "missing_model"), ("", {"type": "session.update"}, "missing_model"),
    ("", {"type": 5}, "missing_model"), ("?model=secret", None, "model_not_allowed"),
])
async def test_a_talk_that_cannot_be_says_why(query: str, first: object, code: str, listener: Listener) -> None:
    world = World(m=listener.port, gone="stopped", secret=listener.port)
    world.allow(Allowance(models=frozenset({"m", "gone", "nothing"})))
    async with talking(world, query) as line:
        if first is not None:
            await line.send(json.dumps(first))
        assert (await failure(line))[0] == code
    assert not listener.keys


async def test_a_model_of_another_kind_is_said_to_be_one() -> None:
    async def no_websocket(server: Any, asked: Any, writer: asyncio.StreamWriter) -> None:
        await upstream.answer_json(server, writer, {"detail": "Not Found"}, "404 Not Found")

    async with stand_in(no_websocket) as server, talking(World(m=server.port), "?model=m") as line:
        assert (await failure(line))[0] == "endpoint_not_offered"


async def test_without_a_key_or_elsewhere_no_websocket_is_opened(listener: Listener) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with talking(World(m=listener.port), key="qd-wrong"):
            pass
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == "invalid_api_key"


async def test_who_names_no_model_is_not_waited_for(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "PATIENCE", 0.1)
    async with talking(World(m=listener.port)) as line:
        await hear(line)
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionClosed):
                await line.recv()


async def test_talks_count_against_what_a_key_may_do_at_once(listener: Listener) -> None:
    world = World(m=listener.port)
    world.allow(Allowance(concurrent=1))
    gateway = world.gateway()
    headers = {"Authorization": f"Bearer {KEY}"}
    async with serving(gateway) as port:
        address = f"ws://127.0.0.1:{port}/v1/realtime?model=m"
        async with connect(address, additional_headers=headers, proxy=None) as first:
            await say(first, "input_audio_buffer.commit")
            while (await hear(first))["type"] != "transcription.done":
                pass
            async with connect(address, additional_headers=headers, proxy=None) as second:
                assert (await failure(second))[0] == "rate_limit_exceeded"
        await gateway.close()
