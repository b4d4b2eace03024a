"""What is wrong is said in OpenAI's shape and with the right status; no fault ends or fills the process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from deployments.gateway import body
from deployments.gateway import http as bounded
from deployments.gateway.keys import Caller, checksum
from tests import upstream
from tests.support.gateway_world import KEY, World, client_of, prompt, serving
from tests.upstream import Asked, Behaviour, StandIn, stand_in

CHAT = "/v1/chat/completions"
MEGABYTE = 1024 * 1024


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with one model that is served, and one in each other state."""
    states = ("draft", "rolling_out", "stopping", "stopped", "failed", "ready", "degraded")
    async with stand_in(upstream.chat) as server:
        world = World(m=server.port, **{state: state for state in states})
        async with client_of(world.gateway()) as client:
            yield client
    assert not [asked for asked in server.asked if asked.json["model"] != "m"]


def error_of(answer: httpx.Response, status: int) -> dict[str, str]:
    """The error of an answer, which must have OpenAI's shape and the status."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    assert answer.headers["x-request-id"]
    return dict(error)


@pytest.mark.parametrize("given", ["", "Bearer", "Basic abc", "Bearer qd-nonsense", "Bearer qd-" + "é" * 40])
async def test_without_a_key_that_is_known_nothing_is_answered(given: str, http: httpx.AsyncClient) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("POST", "/v1/nowhere")):
        answer = await http.request(method, path, headers={b"Authorization": given.encode()}, content=b"{}")
        assert error_of(answer, 401)["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'"m"',
        b"\xff\xfe",
        b'{"model": "m",}',
        b'{"model": 5}',
        b'{"model": ["m"]}',
        b'{"model": "\\ud800"}',
        b'{"model": "\xff"}',
        b'{"model": "m"} {"model": "m"}',
        b'{"model": "m", "stream": "perhaps"}',
        b'{"model": "m", "stream_options": 7}',
        b'{"model": ""}',
        b'{"messages": []}',
        b'{"model": "m", "x": ' + b"[" * 1_000_000,
    ],
)
async def test_a_body_that_is_not_what_the_endpoint_takes_is_a_clear_400(
    content: bytes, http: httpx.AsyncClient
) -> None:
    assert error_of(await http.post(CHAT, content=content), 400)["code"] in ("invalid_json", "missing_model")


@pytest.mark.parametrize("name", ["../m", "m/../m", "m\0", "M", "m ", "%6d", "http://127.0.0.1/", "x" * 100_000])
async def test_a_name_that_no_model_has_is_a_404_that_lists_what_is_running(name: str, http: httpx.AsyncClient) -> None:
    error = error_of(await http.post(CHAT, json=prompt(name)), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "The models that are running: m." in error["message"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize("state", ["draft", "rolling_out", "stopping", "stopped", "failed", "ready", "degraded"])
async def test_a_model_that_is_not_running_is_a_503_with_a_next_step(state: str, http: httpx.AsyncClient) -> None:
    answer = await http.post(CHAT, json=prompt(state))
    error = error_of(answer, 503)
    assert error["code"] == "model_not_running"
    assert f"“{state}”" in error["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_paths_and_methods_that_do_not_exist_are_said(http: httpx.AsyncClient) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/chat/completions/../../metrics", "/v1/%2e%2e/sleep", "/v1"):
        assert error_of(await http.post(path, json=prompt()), 404)["code"] == "unknown_path"
    answer = await http.get(CHAT)
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


async def test_a_body_above_20_mb_is_refused_with_and_without_its_length_announced(
    http: httpx.AsyncClient,
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * MEGABYTE

    for content in (b" " * 50 * MEGABYTE, pieces()):
        tracemalloc.start()
        try:
            error = error_of(await http.post(CHAT, content=content), 413)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert error["code"] == "request_too_large"
        assert held < 5 * MEGABYTE


async def test_headers_beyond_all_measure_are_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post(CHAT, json=prompt(), headers={f"x-{n}": "y" * 1000 for n in range(40)})
    assert error_of(answer, 431)["code"] == "headers_too_large"


UNFINISHED = (
    f'POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000\r\n\r\n{{"model": "m"'
).encode()


async def test_a_body_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "PATIENCE", 0.2)
    async with stand_in(upstream.chat) as server, serving(World(m=server.port).gateway()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UNFINISHED)
        async with asyncio.timeout(5):
            answer = await reader.read()  # to the end: the gateway closes the connection
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "request_timeout"' in answer
    assert not server.asked


async def test_a_client_that_leaves_in_the_middle_of_its_body_asks_nothing_of_the_model() -> None:
    async with stand_in(upstream.chat) as server:
        gateway = World(m=server.port).gateway()
        async with client_of(gateway) as client:
            _reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(UNFINISHED)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            answer = await client.post(CHAT, json=prompt())
    assert answer.status_code == 200  # the gateway goes on
    assert len(server.asked) == 1


async def test_a_head_that_trickles_in_or_has_no_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer_to(port: int, pieces: list[bytes]) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        return answer

    start = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n".encode()
    async with stand_in(upstream.chat) as server:
        gateway = World(m=server.port).gateway()
        async with client_of(gateway) as client:
            port = client.base_url.port or 0
            endless = await answer_to(port, [start, b"X-Long: " + b"y" * 66_000])
            monkeypatch.setattr(bounded, "PATIENCE", 0.1)
            slow = await answer_to(port, [start])
            silent = await answer_to(port, [])
            twice = [await client.post(CHAT, json=prompt()) for _ in range(2)]  # the others go on
    assert [answer[:13] for answer in (endless, slow, silent)] == [b"HTTP/1.1 400 "] * 3
    assert [answer.status_code for answer in twice] == [200, 200]


async def dies_before(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def garbage(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
    await server.send(writer, b"\x16\x03\x01 what is this?\r\n\r\n" * 10)


async def large_head(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
    await server.send(writer, b"HTTP/1.1 200 OK\r\n")
    while True:
        await server.send(writer, b"X-Header: " + b"y" * 1000 + b"\r\n")


async def wrong_key(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
    await upstream.answer_json(server, writer, {"error": "Unauthorized"}, "401 Unauthorized")


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (dies_before, "model_broke_off"),
        (garbage, "model_broke_off"),
        (large_head, "model_broke_off"),
        (wrong_key, "model_refused_gateway"),
    ],
)
async def test_a_model_server_that_does_not_answer_properly_is_a_502(behaviour: Behaviour, code: str) -> None:
    async with stand_in(behaviour) as server, client_of(World(m=server.port).gateway()) as client:
        assert error_of(await client.post(CHAT, json=prompt()), 502)["code"] == code


async def test_a_model_server_that_cannot_be_reached_is_a_503() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with client_of(World(m=port).gateway()) as client:
        answer = await client.post(CHAT, json=prompt())
    assert error_of(answer, 503)["code"] == "model_unreachable"
    assert answer.headers["retry-after"] == "5"


async def test_a_model_servers_own_refusal_is_passed_on_as_it_is() -> None:
    refusal = {
        "error": {
            "message": "max_tokens is too large.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        }
    }

    async def refuses(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await upstream.answer_json(server, writer, refusal, "400 Bad Request")

    async with stand_in(refuses) as server, client_of(World(m=server.port).gateway()) as client:
        answer = await client.post(CHAT, json=prompt(stream=True))
    assert (answer.status_code, answer.json()) == (400, refusal)


async def test_a_model_that_dies_in_mid_stream_leaves_whole_events_and_an_error_event() -> None:
    async def dies(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, upstream.HEAD % b"text/event-stream")
        await server.send(writer, upstream.chunk(upstream.token("Ada") + upstream.token("Bea")[:20]))
        writer.close()

    async with stand_in(dies) as server, client_of(World(m=server.port).gateway()) as client:
        answer = await client.post(CHAT, json=prompt(stream=True))
    first, last = answer.content.split(b"\n\n", 1)
    assert first + b"\n\n" == upstream.token("Ada")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "model_broke_off"


@pytest.mark.parametrize("rest", [b"zz\r\nnonsense\r\n", b"5\r\nabc", b"ffffffffffffffff1\r\n", b"\x00" * 100])
async def test_a_model_that_sends_garbage_in_mid_stream_leaves_whole_events_and_an_error_event(rest: bytes) -> None:
    async def turns(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, upstream.HEAD % b"text/event-stream" + upstream.chunk(upstream.token("Ada")) + rest)
        writer.close()

    async with stand_in(turns) as server, client_of((world := World(m=server.port)).gateway()) as client:
        answer = await client.post(CHAT, json=prompt(stream=True))
    first, last = answer.content.split(b"\n\n", 1)
    assert first + b"\n\n" == upstream.token("Ada")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "model_broke_off"
    (count,) = world.counted.values()
    assert (count.requests, count.errors, count.completion_tokens) == (1, 1, 1)


async def test_a_model_that_dies_in_the_middle_of_a_whole_answer_does_not_pass_for_complete() -> None:
    async def dies(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        writer.close()

    async with stand_in(dies) as server, client_of(World(m=server.port).gateway()) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(CHAT, json=prompt())


async def test_a_thousand_wrong_keys_do_not_make_the_gateway_ask_its_database(
    http: httpx.AsyncClient,
) -> None:
    world = World(m=1)
    made_up = [f"{number:034d}" for number in range(1000)]
    async with client_of(world.gateway()) as client:
        limit = asyncio.Semaphore(250)

        async def ask(text: str) -> int:
            async with limit:
                key = f"qd-{text}{checksum(text)}"  # as if made a moment ago: the costly kind
                answer = await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
                return answer.status_code

        statuses = await asyncio.gather(*map(ask, made_up))
        assert (await client.get("/v1/models")).status_code == 200
    assert set(statuses) == {401}
    assert world.looks < 50


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_thousand_keys_that_hammer_at_once_are_all_answered_within_little_memory() -> None:
    async with stand_in(upstream.chat) as server:
        world = World(m=server.port)
        keys = [f"qd-key-{number}" for number in range(1000)]
        for number, key in enumerate(keys):
            world.callers[hashlib.sha256(key.encode()).hexdigest()] = Caller(user_id=number, key_id=number)
        async with client_of(world.gateway()) as client:
            await client.get("/v1/models")
            limit = asyncio.Semaphore(100)

            async def ask(key: str) -> int:
                async with limit:
                    bearer = {"Authorization": f"Bearer {key}"}
                    return (await client.post(CHAT, json=prompt(stream=True), headers=bearer)).status_code

            before = resident()
            statuses = await asyncio.gather(*map(ask, keys))
            grown = resident() - before
    assert statuses == [200] * 1000
    assert grown < 60 * MEGABYTE  # of the gateway, the stand-in and the client together
    assert {line.key_id: count.requests for line, count in world.counted.items()} == dict.fromkeys(range(1000), 1)
