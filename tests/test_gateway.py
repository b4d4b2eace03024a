"""A prompt goes through the gateway: its answer comes back byte for byte; a hang-up ends the work at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tracemalloc
from collections.abc import AsyncIterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from deployments.gateway.client import Limits
from tests import upstream
from tests.support.gateway_world import KEY, UPSTREAM_KEY, World, client_of, prompt, route, serving
from tests.upstream import Asked, StandIn, stand_in

CHAT = "/v1/chat/completions"


async def never(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Takes the request and says nothing."""
    await asyncio.Event().wait()


async def endless(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Tokens for as long as somebody takes them."""
    await server.send(writer, upstream.HEAD % b"text/event-stream")
    piece = upstream.chunk(upstream.token("x" * 1000))
    while True:
        await server.send(writer, piece)
        await asyncio.sleep(0)


async def within(seconds: float, event: asyncio.Event) -> float:
    """Wait for an event; how long it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(seconds):
        await event.wait()
    return loop.time() - began


async def test_a_stream_arrives_byte_for_byte_without_the_usage_that_only_the_gateway_asked_for() -> (
    None
):
    async with stand_in(upstream.chat) as server, client_of(World(m=server.port).gateway()) as http:
        answer = await http.post(CHAT, json=prompt(stream=True))
    words = [upstream.token(word) for word in ("Ada", " Bea", " Çy")]
    assert answer.content == b"".join([*words, upstream.DONE])
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-accel-buffering"] == "no"
    assert server.asked[0].json["stream_options"] == {"include_usage": True}


async def test_a_client_that_asks_for_usage_gets_it() -> None:
    async with stand_in(upstream.chat) as server, client_of(World(m=server.port).gateway()) as http:
        answer = await http.post(CHAT, json=prompt(stream=True, stream_options={"include_usage": True}))
    assert answer.content.endswith(upstream.USAGE_EVENT + upstream.DONE)


async def test_a_whole_answer_and_its_request_pass_unchanged() -> None:
    sent = json.dumps(prompt(seed=2**53 + 1, note="«ä\u2028»"), ensure_ascii=False, indent=3).encode()
    async with stand_in(upstream.chat) as server, client_of(World(m=server.port).gateway()) as http:
        answer = await http.post(CHAT, content=sent, headers={"Content-Type": "application/json"})
    assert server.asked[0].body == sent
    assert answer.json()["usage"] == upstream.USAGE
    assert answer.json()["choices"][0]["message"]["content"] == "Ada Bea Cy"


async def test_what_is_the_clients_own_stays_at_the_gateway_and_the_servers_key_is_put_in() -> None:
    private = {
        "Cookie": "sessionid=1",
        "X-Api-Key": "k",
        "X-Forwarded-For": "1.2.3.4",
        "Connection": "x-hop, close",
    }
    async with stand_in(upstream.chat) as server, client_of(World(m=server.port).gateway()) as http:
        answer = await http.post(CHAT, json=prompt(), headers={**private, "X-Hop": "1", "X-Note": "kept"})
    headers = server.asked[0].headers
    assert headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert headers["x-note"] == "kept"
    assert headers["accept-encoding"] == "identity"
    assert not {"cookie", "x-api-key", "x-forwarded-for", "x-hop"} & headers.keys()
    assert answer.headers["x-request-id"] == headers["x-request-id"]


async def test_events_cut_anywhere_on_the_way_arrive_whole_and_the_usage_is_still_taken_out() -> None:
    stream = b"".join(upstream.token(word) for word in "abc") + upstream.USAGE_EVENT + upstream.DONE

    async def dribble(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, upstream.HEAD % b"text/event-stream")
        for start in range(0, len(stream), 7):
            await server.send(writer, upstream.chunk(stream[start : start + 7]))
            await asyncio.sleep(0)
        await server.send(writer, upstream.END)

    async with stand_in(dribble) as server, client_of(World(m=server.port).gateway()) as http:
        answer = await http.post(CHAT, json=prompt(stream=True))
    assert answer.content == stream.replace(upstream.USAGE_EVENT, b"")


@pytest.mark.parametrize(("stream", "size"), [(True, 0), (False, 0), (True, 200_000), (True, 2_000_000)])
async def test_a_hang_up_before_the_first_token_ends_the_request_upstream_at_once(stream: bool, size: int) -> None:
    async with stand_in(never) as server, client_of(World(m=server.port).gateway()) as http:
        asking = asyncio.ensure_future(http.post(CHAT, json=prompt(stream=stream, note="x" * size)))
        await within(5, server.began)
        asking.cancel()
        assert await within(1, server.hung_up) < 0.2


async def test_a_hang_up_in_mid_stream_ends_the_request_upstream_at_once() -> None:
    async with stand_in(endless) as server, client_of(World(m=server.port).gateway()) as http:
        async with http.stream("POST", CHAT, json=prompt(stream=True)) as answer:
            async for _line in answer.aiter_lines():
                break
        assert await within(1, server.hung_up) < 0.2


async def test_a_hang_up_while_the_prompt_is_still_on_its_way_up_ends_the_request_at_once() -> None:
    ended = asyncio.Event()
    began = asyncio.Event()

    async def takes_little(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads no more than the beginning, so that most of the prompt waits in the gateway."""
        await reader.read(1)
        began.set()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError):
            while not writer.transport.is_closing():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # fails once the gateway has let go
                await asyncio.sleep(0.01)
        ended.set()

    server = await asyncio.start_server(takes_little, "127.0.0.1", 0, limit=1024)
    port = server.sockets[0].getsockname()[1]
    async with client_of(World(m=port).gateway()) as http:
        asking = asyncio.ensure_future(http.post(CHAT, json=prompt(note="x" * 8_000_000)))
        await within(5, began)
        asking.cancel()
        assert await within(1, ended) < 0.2
    server.close()


async def test_a_reader_that_is_stuck_stops_the_model_and_costs_little_memory() -> None:
    async with stand_in(endless) as server, serving((world := World(m=server.port)).gateway()) as port:
        content = json.dumps(prompt(stream=True)).encode()
        lines = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(content)}\r\n\r\n"
        head = f"POST {CHAT} HTTP/1.1\r\n{lines}"
        _reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        tracemalloc.start()
        try:
            writer.write(head.encode() + content)
            await within(5, server.began)
            await _stalled(server)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            writer.transport.abort()
        await within(1, server.hung_up)
    assert server.sent > 500_000  # what the sockets' buffers take: the stream did run until it was stopped
    assert held < 2_000_000
    assert world.looks >= 1


async def _stalled(server: StandIn) -> None:
    """Wait until the stand-in has not been able to send for half a second."""
    async with asyncio.timeout(20):
        before = -1
        while before != server.sent:
            before = server.sent
            await asyncio.sleep(0.5)


async def test_a_reader_that_is_slow_gets_every_byte_in_order() -> None:
    words = [upstream.token(f"{number:06d}" + "x" * 2000) for number in range(15_000)]  # more than buffers hold

    async def fast(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, upstream.HEAD % b"text/event-stream")
        for word in words:
            await server.send(writer, upstream.chunk(word))
        await server.send(writer, upstream.chunk(upstream.DONE) + upstream.END)

    received = []
    async with (
        stand_in(fast) as server,
        client_of(World(m=server.port).gateway()) as http,
        http.stream("POST", CHAT, json=prompt(stream=True)) as answer,
    ):
        await _stalled(server)
        assert server.sent < sum(map(len, words)) / 2  # it was made to wait
        async for piece in answer.aiter_bytes(1_000_000):
            received.append(piece)
            await asyncio.sleep(0.01)
    assert b"".join(received) == b"".join(words) + upstream.DONE


async def test_connections_to_the_model_server_are_used_again() -> None:
    async with stand_in(upstream.chat) as server, client_of(World(m=server.port).gateway()) as http:
        for stream in (True, False, True):
            await http.post(CHAT, json=prompt(stream=stream))
    assert (len(server.asked), server.connections) == (3, 1)


async def test_a_kept_connection_that_the_server_had_closed_is_replaced_without_the_client_noticing() -> None:
    async def once(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if server.connections == 1 and len(server.asked) == 2:
            writer.close()  # as a server does that closes an idle connection just as a request arrives
            return
        await upstream.chat(server, asked, writer)

    async with stand_in(once) as server, client_of(World(m=server.port).gateway()) as http:
        answers = [await http.post(CHAT, json=prompt()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert (len(server.asked), server.connections) == (3, 2)


async def test_a_replica_that_cannot_be_reached_is_passed_over() -> None:
    world = World()
    async with stand_in(upstream.chat) as server, stand_in(upstream.chat) as gone:
        world.routes["m"] = route("m", closed_port(), server.port)
        async with client_of(world.gateway()) as http:
            answer = await http.post(CHAT, json=prompt())
    assert answer.status_code == 200
    assert not gone.asked


def closed_port() -> int:
    """A port of loopback where nobody listens."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_requests_go_to_the_replica_with_the_least_in_flight() -> None:
    world = World()
    async with stand_in(never) as one, stand_in(never) as other:
        world.routes["m"] = route("m", one.port, other.port)
        async with client_of(world.gateway()) as http:
            asking = [asyncio.ensure_future(http.post(CHAT, json=prompt())) for _ in range(4)]
            async with asyncio.timeout(5):
                while len(one.asked) + len(other.asked) < 4:
                    await asyncio.sleep(0.01)
            for task in asking:
                task.cancel()
    assert (len(one.asked), len(other.asked)) == (2, 2)


async def test_the_list_of_models_has_those_that_are_served() -> None:
    async with client_of(World(up=1, down="stopped").gateway()) as http:
        answer = await http.get("/v1/models")
        one = await http.get("/v1/models/up")
    assert [model["id"] for model in answer.json()["data"]] == ["up"]
    assert one.json() == answer.json()["data"][0]


@pytest.fixture
async def official() -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client, talking to the gateway."""
    async with stand_in(upstream.chat) as server:
        gateway = World(m=server.port, gone="stopped").gateway()
        async with serving(gateway) as port:
            http = openai.DefaultAsyncHttpxClient(trust_env=False)
            base = f"http://127.0.0.1:{port}/v1"
            async with openai.AsyncOpenAI(
                api_key=KEY, base_url=base, max_retries=0, http_client=http
            ) as client:
                yield client
            await gateway.close()


async def test_the_official_client_works_unchanged(official: openai.AsyncOpenAI) -> None:
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Who?"}]
    whole = await official.chat.completions.create(model="m", messages=asked)
    stream = await official.chat.completions.create(model="m", messages=asked, stream=True)
    words = [part.choices[0].delta.content or "" async for part in stream]
    assert whole.choices[0].message.content == "Ada Bea Cy"
    assert whole.usage and whole.usage.completion_tokens == 3
    assert "".join(words) == "Ada Bea Çy"
    assert [model.id async for model in official.models.list()] == ["m"]


async def test_the_official_client_understands_the_refusals(official: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="The models that are running: m"):
        await official.embeddings.create(model="nothing", input="x")
    with pytest.raises(openai.InternalServerError, match="is stopped") as stopped:
        await official.embeddings.create(model="gone", input="x")
    assert stopped.value.status_code == 503
    with pytest.raises(openai.AuthenticationError):
        await official.with_options(api_key="qd-wrong").models.list()


async def test_silence_beyond_the_limit_is_said_and_the_request_is_ended() -> None:
    limits = Limits(first_byte=0.2)
    async with stand_in(never) as server, client_of(World(m=server.port).gateway(limits)) as http:
        answer = await http.post(CHAT, json=prompt())
        await within(1, server.hung_up)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "model_timed_out")
