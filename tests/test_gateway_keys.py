"""Keys and routes are held in memory: a change counts within a moment, an outage stops nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core import signing
from django.db import DatabaseError

from deployments.gateway import directory, keys, limits, routes
from deployments.gateway.app import Gateway
from deployments.models import ApiKey, Deployment
from nodes.models import Cluster, Node
from tests import upstream
from tests.support.gateway_world import UPSTREAM_KEY, World, client_of, prompt
from tests.upstream import StandIn, stand_in

pytestmark = pytest.mark.django_db(transaction=True)
CHAT = "/v1/chat/completions"


def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return sync_to_async(function)(*arguments)


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client, without a key, of a gateway that reads the database and hears pokes."""
    async with client_of(Gateway(), key="") as client:
        yield client


async def status_of(http: httpx.AsyncClient, key: str) -> int:
    answer = await http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    return answer.status_code


async def until(http: httpx.AsyncClient, key: str, status: int, seconds: float) -> None:
    """Ask with a key until the status is the one expected."""
    async with asyncio.timeout(seconds):
        while await status_of(http, key) != status:
            await asyncio.sleep(0.02)


async def test_a_key_works_at_once_and_only_its_digest_is_kept(ada: User, http: httpx.AsyncClient) -> None:
    assert await status_of(http, "qd-first-look") == 401
    key, plain = await in_thread(keys.create, ada, "laptop")
    assert await status_of(http, plain) == 200
    kept = await in_thread(lambda: ApiKey.objects.values_list().get())
    assert plain not in str(kept)
    assert plain.startswith(key.prefix) and len(key.prefix) < 12


@pytest.mark.valkey
async def test_a_revoked_key_stops_within_a_second(ada: User, http: httpx.AsyncClient) -> None:
    key, plain = await in_thread(keys.create, ada, "laptop")
    assert await status_of(http, plain) == 200
    await in_thread(keys.revoke, key)
    await until(http, plain, 401, seconds=1)
    assert key.revoked_at


async def test_without_redis_a_revoked_key_stops_after_the_views_expiry(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "EXPIRY", 0.5)
    async with client_of(Gateway(), key="") as http:
        key, plain = await in_thread(keys.create, ada, "laptop")
        assert await status_of(http, plain) == 200
        await in_thread(keys.revoke, key)
        await until(http, plain, 401, seconds=2)


async def test_a_key_ends_when_it_expires(ada: User, http: httpx.AsyncClient) -> None:
    from datetime import datetime

    ending = datetime.fromtimestamp(time.time() + 0.5, UTC)
    _, plain = await in_thread(keys.create, ada, "short", ending)
    assert await status_of(http, plain) == 200
    await until(http, plain, 401, seconds=2)
    answer = await http.get("/v1/models", headers={"Authorization": f"Bearer {plain}"})
    assert answer.json()["error"]["code"] == "expired_api_key"


@pytest.mark.valkey
async def test_the_keys_of_a_deactivated_user_stop(ada: User, http: httpx.AsyncClient) -> None:
    _, plain = await in_thread(keys.create, ada, "laptop")
    token = keys.session_token(ada)
    assert [await status_of(http, one) for one in (plain, token)] == [200, 200]
    await in_thread(lambda: User.objects.filter(pk=ada.pk).update(is_active=False))
    await in_thread(routes.poke)
    for one in (plain, token):
        await until(http, one, 401, seconds=1)


async def test_a_page_may_call_with_its_session_token_until_it_is_too_old(
    ada: User, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = keys.session_token(ada)
    assert await status_of(http, token) == 200
    assert await status_of(http, token[:-1] + ("A" if token[-1] != "A" else "B")) == 401
    monkeypatch.setattr(keys, "SESSION_SECONDS", -1)
    answer = await http.get("/v1/models", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "expired_session")


@pytest.mark.valkey
async def test_a_change_of_the_password_ends_the_pages_token_and_the_next_one_works_at_once(
    ada: User, http: httpx.AsyncClient
) -> None:
    before = keys.session_token(ada)
    assert await status_of(http, before) == 200
    ada.set_password("another horse")
    await in_thread(ada.save)
    assert await status_of(http, keys.session_token(ada)) == 200  # looked again, as it was not known
    assert await status_of(http, before) == 401


async def test_the_pages_of_one_user_share_limits_of_their_own(
    ada: User, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "PAGES", replace(limits.PAGES, requests_per_minute=3))
    bob = await in_thread(User.objects.create_user, "bob")
    async with stand_in(upstream.chat) as server:
        await in_thread(deployed, server, "ready")

        async def ask(user: User) -> httpx.Response:
            token = {"Authorization": f"Bearer {keys.session_token(user)}"}  # another one each time, as of another page
            return await http.post(CHAT, json=prompt("tiny"), headers=token)

        answers = [await ask(ada) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert (await ask(bob)).status_code == 200
    assert "Your pages have reached their limit: 3 requests a minute." in answers[3].json()["error"]["message"]
    assert answers[3].headers["retry-after"]


async def test_a_token_of_a_user_who_is_new_works_at_once(http: httpx.AsyncClient) -> None:
    assert await status_of(http, "qd-first-look") == 401
    assert await status_of(http, keys.session_token(await in_thread(User.objects.create_user, "new"))) == 200


def test_a_token_of_an_older_quarterdeck_which_had_the_user_only_is_no_token(ada: User) -> None:
    token = keys.SESSION_PREFIX + signing.dumps(ada.pk, salt="quarterdeck.gateway.session")
    assert keys.find(token, keys.load(), 0) is None


def deployed(server: StandIn, state: str) -> Deployment:
    node = Node.objects.create(name="here", kind=Node.Kind.LOCAL, address="127.0.0.1")
    cluster = Cluster.objects.create(name="c", head=node)
    deployment = Deployment.objects.create(
        name="tiny", model="/m", cluster=cluster, port=server.port, state=state, api_key=UPSTREAM_KEY
    )
    deployment.replicas.create(number=1, node=node, port=server.port, state="ready")
    return deployment


async def test_a_deployment_is_answered_for_from_the_moment_it_is_ready(
    ada: User, http: httpx.AsyncClient
) -> None:
    _, plain = await in_thread(keys.create, ada, "laptop")
    http.headers["Authorization"] = f"Bearer {plain}"
    async with stand_in(upstream.chat) as server:
        deployment = await in_thread(deployed, server, "rolling_out")
        early = await http.post(CHAT, json=prompt("tiny"))
        await in_thread(deployment.move, "ready")
        answer = await http.post(CHAT, json=prompt("tiny"))  # without waiting, without a poke
    assert early.json()["error"]["code"] == "model_not_running"
    assert answer.status_code == 200
    assert server.asked[0].headers["authorization"] == f"Bearer {UPSTREAM_KEY}"


async def test_prompts_go_on_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "EXPIRY", 0.25)
    async with stand_in(upstream.chat) as server:
        world = World(m=server.port)
        async with client_of(world.gateway()) as http:
            await http.post(CHAT, json=prompt())
            world.fails = DatabaseError("the connection was refused")
            looks = world.looks
            async with asyncio.timeout(5):
                while world.looks < looks + 2:
                    await asyncio.sleep(0.02)
            answer = await http.post(CHAT, json=prompt())
    assert answer.status_code == 200


async def test_a_gateway_that_cannot_read_its_database_at_first_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(directory, "PATIENCE", 0.1)
    world = World()
    world.fails = DatabaseError("the connection was refused")
    async with client_of(world.gateway()) as http:
        answer = await http.get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")


async def test_no_key_is_ever_logged(
    ada: User, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, plain = await in_thread(keys.create, ada, "laptop")
    async with stand_in(upstream.chat) as server:
        await in_thread(deployed, server, "ready")
        for key in (plain, plain[:-1] + "?", keys.session_token(ada)):
            await http.post(CHAT, json=prompt("tiny"), headers={"Authorization": f"Bearer {key}"})
    assert "uvicorn.access" in {record.name for record in caplog.records}
    ours = [
        record.getMessage()
        for record in caplog.records
        if record.name.partition(".")[0] not in ("httpx", "httpcore")
    ]
    assert not [line for line in ours if plain[3:20] in line or "qs-" in line or UPSTREAM_KEY in line]
