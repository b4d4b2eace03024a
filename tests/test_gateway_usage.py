"""What callers use is counted from the model's own figures; what their keys allow is kept to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import DatabaseError

from deployments.gateway import keys, meter
from deployments.gateway.app import Gateway
from deployments.gateway.directory import View
from deployments.gateway.errors import ApiError
from deployments.gateway.limits import DAY, Account, Allowance
from deployments.gateway.meter import Count, Line
from deployments.gateway.relay import Relay, Tokens
from deployments.models import ApiKey
from deployments.usage import KeyLimits, Usage
from tests import upstream
from tests.support.gateway_world import World, client_of, prompt, route
from tests.upstream import Asked, StandIn, stand_in

CHAT = "/v1/chat/completions"


async def count_of(
    ask: Callable[[httpx.AsyncClient], Awaitable[Any]], behaviour: upstream.Behaviour
) -> Count:
    """What one request is counted as."""
    async with stand_in(behaviour) as server:
        world = World(m=server.port)
        async with client_of(world.gateway()) as http:
            await ask(http)
    ((line, count),) = world.counted.items()
    assert line == Line(datetime.now(UTC).date(), 1, 1, "m")
    return count


@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"include_usage": False}])
async def test_a_stream_is_counted_by_the_usage_that_the_model_reports(
    options: dict[str, bool] | None,
) -> None:
    count = await count_of(
        lambda http: http.post(CHAT, json=prompt(stream=True, stream_options=options)), upstream.chat
    )
    assert (count.requests, count.errors, count.estimated, count.ttft_count) == (1, 0, 0, 1)
    assert (count.prompt_tokens, count.completion_tokens) == (7, 3)


async def test_a_whole_answer_is_counted_too() -> None:
    count = await count_of(lambda http: http.post(CHAT, json=prompt()), upstream.chat)
    assert count == Count(requests=1, prompt_tokens=7, completion_tokens=3)


async def test_a_failure_is_counted_as_an_error() -> None:
    async def dies(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.close()

    count = await count_of(lambda http: http.post(CHAT, json=prompt()), dies)
    assert count == Count(requests=1, errors=1)


async def test_a_stream_that_its_client_gave_up_is_counted_by_its_events_and_marked() -> None:
    hung_up = asyncio.Event()

    async def three_then_silence(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, upstream.HEAD % b"text/event-stream")
        await server.send(writer, b"".join(upstream.chunk(upstream.token(word)) for word in "abc"))
        try:
            await asyncio.Event().wait()
        finally:
            hung_up.set()

    async def leave(http: httpx.AsyncClient) -> None:
        async with http.stream("POST", CHAT, json=prompt(stream=True)) as answer:
            lines = answer.aiter_lines()
            for _ in range(5):  # three events and the empty lines between them
                await anext(lines)
        async with asyncio.timeout(5):
            await hung_up.wait()

    count = await count_of(leave, three_then_silence)
    assert (count.completion_tokens, count.estimated, count.errors) == (3, 1, 0)


async def test_counts_wait_for_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "EVERY", 0.05)
    async with stand_in(upstream.chat) as server:
        world = World(m=server.port)
        async with client_of(world.gateway()) as http:
            await http.post(CHAT, json=prompt())
            world.fails = DatabaseError("the connection was refused")
            for _ in range(3):
                assert (await http.post(CHAT, json=prompt())).status_code == 200
                await asyncio.sleep(0.06)
            world.fails = None
    assert [count.requests for count in world.counted.values()] == [4]


@pytest.mark.django_db(transaction=True)
class TestInTheDatabase:
    """With real rows of keys, limits and usage."""

    async def _ask(self, server: StandIn, token: str, model: str = "m") -> httpx.Response:
        """One prompt to a gateway with the database's keys; its counts are written when this returns."""
        world = World(m=server.port)
        world.routes["other"] = route("other", server.port)
        gateway = Gateway(lambda: View(keys.load(), world.load().routes), world.listen)
        async with client_of(gateway, key=token) as http:
            return await http.post(CHAT, json=prompt(model, stream=True))

    async def test_each_key_model_and_day_has_one_row_that_grows(self) -> None:
        ada = await User.objects.acreate(username="ada")
        key, plain = await sync_to_async(keys.create)(ada, "laptop")
        async with stand_in(upstream.chat) as server:
            for model in ("m", "m", "other"):
                assert (await self._ask(server, plain, model=model)).status_code == 200
            await self._ask(server, keys.session_token(ada))
        rows = [row async for row in Usage.objects.order_by("pk").values_list("key", "model", "requests")]
        assert rows == [(key.pk, "m", 2), (key.pk, "other", 1), (None, "m", 1)]
        row = await Usage.objects.aget(key=key.pk, model="m")
        assert (row.prompt_tokens, row.completion_tokens, row.ttft_count) == (14, 6, 2)
        assert (await ApiKey.objects.aget()).last_used_at is not None

    async def test_what_several_gateways_write_into_one_row_adds_up(self) -> None:
        line = Line(datetime.now(UTC).date(), 1, None, "m")
        for _ in range(2):
            await sync_to_async(meter.write)({line: Count(requests=1, prompt_tokens=5)})
        assert (await Usage.objects.aget()).prompt_tokens == 10

    async def test_what_other_processes_wrote_down_counts_against_the_days_tokens(self) -> None:
        ada = await User.objects.acreate(username="ada")
        key, plain = await sync_to_async(keys.create)(ada, "laptop")
        await KeyLimits.objects.acreate(key=key, tokens_per_day=100)
        line = Line(datetime.now(UTC).date(), ada.pk, key.pk, "m")
        async with stand_in(upstream.chat) as server:
            first = await self._ask(server, plain)
            await sync_to_async(meter.write)({line: Count(requests=1, prompt_tokens=90)})
            second = await self._ask(server, plain)
        assert (first.status_code, second.status_code) == (200, 429)
        assert "100 tokens a day" in second.json()["error"]["message"]

    async def test_a_key_for_some_models_cannot_ask_or_see_others(self) -> None:
        ada = await User.objects.acreate(username="ada")
        key, plain = await sync_to_async(keys.create)(ada, "laptop")
        await KeyLimits.objects.acreate(key=key, only_models=["other"])
        async with stand_in(upstream.chat) as server:
            answers = [await self._ask(server, plain, model=model) for model in ("m", "other")]
        assert [answer.status_code for answer in answers] == [403, 200]
        assert answers[0].json()["error"]["code"] == "model_not_allowed"


def limited(world: World, allowance: Allowance) -> World:
    """The world's key with limits."""
    ((digest, _),) = world.callers.items()
    world.callers[digest] = keys.Caller(1, 1, allowance=allowance)
    return world


async def test_requests_beyond_a_minutes_are_a_429_with_the_headers_that_clients_know() -> None:
    async with stand_in(upstream.chat) as server:
        world = limited(World(m=server.port), Allowance(requests_per_minute=2))
        async with client_of(world.gateway()) as http:
            answers = [await http.post(CHAT, json=prompt()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[2].headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert answers[2].json()["error"]["type"] == "rate_limit_error"
    assert len(server.asked) == 2


async def test_requests_at_once_are_limited_and_free_their_place_when_they_end() -> None:
    async def never(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with stand_in(never) as server:
        world = limited(World(m=server.port), Allowance(concurrent=1))
        async with client_of(world.gateway()) as http:
            asking = asyncio.ensure_future(http.post(CHAT, json=prompt()))
            async with asyncio.timeout(5):
                await server.began.wait()
                refused = await http.post(CHAT, json=prompt())
                asking.cancel()
                await server.hung_up.wait()
                server.behaviour = upstream.chat
                again = await http.post(CHAT, json=prompt())
    assert (refused.status_code, again.status_code) == (429, 200)


NOON = 20_000 * DAY + DAY / 2


def refused(account: Account, allowed: Allowance, now: float, written: int = 0) -> int:
    """Seconds after which the account is told to try again; 0: let in."""
    try:
        account.begin(allowed, written, now)
    except ApiError as error:
        return int(dict(error.headers)[b"retry-after"])
    return 0


def test_a_minutes_requests_come_back_evenly() -> None:
    account, allowed = Account(), Allowance(requests_per_minute=6)
    assert [refused(account, allowed, NOON) for _ in range(7)] == [0] * 6 + [10]
    assert refused(account, allowed, NOON + 9) == 1
    assert refused(account, allowed, NOON + 10) == 0
    assert [refused(account, allowed, NOON + 1000) for _ in range(7)] == [0] * 6 + [10]


def test_tokens_are_owed_when_an_answer_was_longer_than_what_was_left() -> None:
    account, allowed = Account(), Allowance(tokens_per_minute=600)
    assert refused(account, allowed, NOON) == 0
    account.end(1200, NOON)
    assert refused(account, allowed, NOON) == 61
    assert refused(account, allowed, NOON + 61) == 0


def test_the_days_tokens_are_given_anew_at_midnight() -> None:
    account, allowed = Account(), Allowance(tokens_per_day=100)
    assert refused(account, allowed, NOON) == 0
    account.end(100, NOON)
    assert refused(account, allowed, NOON) == DAY / 2
    assert refused(account, allowed, NOON + DAY / 2) == 0


def test_a_limit_that_is_raised_counts_at_once() -> None:
    account = Account()
    assert [refused(account, Allowance(requests_per_minute=1), NOON) for _ in range(2)] == [0, 60]
    assert refused(account, Allowance(requests_per_minute=2), NOON) == 0


def test_the_usage_of_every_kind_of_answer_is_found() -> None:
    def tokens(events: bool, *parts: bytes) -> Tokens:
        relay = Relay(events, strip=False)
        for part in parts:
            relay.feed(part)
        return relay.tokens()

    embeddings = json.dumps({"data": ["x" * 9000], "usage": {"prompt_tokens": 5, "total_tokens": 5}}).encode()
    assert tokens(False, embeddings[:4000], embeddings[4000:9020], embeddings[9020:]) == Tokens(5, 0)
    responses = b'data: {"response": {"usage": {"input_tokens": 4, "output_tokens": 2}}}\n\n'
    assert tokens(True, b"data: {}\n\n", responses) == Tokens(4, 2)
    assert tokens(True, b'data: {"usage": {"prompt_tokens": "many"}}\n\n') == Tokens(0, 0)
    assert tokens(True, b'data: {"usage": {"prompt_tok') == Tokens(0, 0, estimated=True)
    quoted = json.dumps({"choices": [{"text": '"usage": {"prompt_tokens": 9}'}]}).encode()
    assert tokens(False, quoted).estimated
