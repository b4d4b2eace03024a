"""A deployment answers to further names: added on its page, known to the gateway at once, counted as the deployment."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.test import Client
from django.urls import reverse

from controlplane.problems import Problem
from deployments import aliases
from deployments.gateway import keys, routes
from deployments.gateway.app import Gateway
from deployments.gateway.errors import ApiError
from deployments.gateway.limits import Allowance
from deployments.models import Alias, Deployment, Usage
from nodes.models import Cluster, Node
from tests import upstream
from tests.support.gateway_world import World, client_of, prompt
from tests.upstream import Asked, StandIn, stand_in

CHAT = "/v1/chat/completions"
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}


def deployed(name: str = "tiny", port: int = 9, state: str = "ready") -> Deployment:
    node, _ = Node.objects.get_or_create(name="here", kind=Node.Kind.LOCAL, address="127.0.0.1")
    cluster, _ = Cluster.objects.get_or_create(name="c", head=node)
    one = Deployment.objects.create(name=name, model="/m", cluster=cluster, port=port, state=state)
    one.replicas.create(number=1, node=node, port=port, state=state)
    return one


@pytest.fixture
def mei() -> Client:
    user = User.objects.create_user("mei")
    user.groups.add(Group.objects.get_or_create(name="operator")[0])
    client = Client()
    client.force_login(user)
    return client


@pytest.mark.django_db(transaction=True)
async def test_an_alias_reaches_the_deployment_under_the_name_that_its_server_knows() -> None:
    ada = await User.objects.acreate(username="ada")
    async with stand_in(upstream.chat) as server:
        found = await sync_to_async(deployed)(port=server.port)
        _, plain = await sync_to_async(keys.create)(ada, "laptop")
        async with client_of(Gateway(), key=plain) as http:
            unknown = await http.post(CHAT, json=prompt("gpt-4o"))
            await sync_to_async(aliases.add)(found, "gpt-4o", ada)
            bodies = [prompt("gpt-4o", stream=stream, seed=2**60) for stream in (False, True)]
            answers = [await http.post(CHAT, json=body) for body in bodies]
            listed = (await http.get("/v1/models")).json()["data"]
    assert (unknown.status_code, [answer.status_code for answer in answers]) == (404, [200, 200])
    assert [(asked.json["model"], asked.json["seed"]) for asked in server.asked] == [("tiny", 2**60)] * 2
    assert [(card["id"], card["root"]) for card in listed] == [("gpt-4o", "tiny"), ("tiny", "tiny")]
    assert [one async for one in Usage.objects.values_list("model", "requests")] == [("tiny", 2)]


async def test_a_form_is_sent_on_with_the_servers_own_name_in_place_of_the_alias() -> None:
    sound = b"\0\r\n--edg" * 1000
    form = (b'--edge\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n--edge\r\n'
            b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + sound + b"\r\n--edge--\r\n")
    async def transcribes(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await upstream.answer_json(server, writer, {"text": "one two"})

    async with stand_in(transcribes) as server:
        world = World(m=server.port)
        world.routes["whisper-1"] = world.routes["m"]
        async with client_of(world.gateway()) as http:
            answer = await http.post("/v1/audio/transcriptions", content=form % b"whisper-1", headers=FORM)
    assert answer.status_code == 200
    assert server.asked[0].body == form % b"m"
    assert server.asked[0].headers["content-type"] == FORM["Content-Type"]


@pytest.mark.parametrize("allowed", ["m", "gpt-4o"])
async def test_a_key_for_some_models_may_use_an_alias_when_it_may_use_either_name(allowed: str) -> None:
    async with stand_in(upstream.chat) as server:
        world = World(m=server.port, other=server.port)
        world.routes["gpt-4o"] = world.routes["m"]
        world.allow(Allowance(models=frozenset({allowed})))
        async with client_of(world.gateway()) as http:
            asked: list[httpx.Response] = [await http.post(CHAT, json=prompt(name)) for name in ("gpt-4o", "other")]
    assert [answer.status_code for answer in asked] == [200, 403]


@pytest.mark.django_db
def test_names_that_are_unknown_are_told_the_deployments_and_the_aliases() -> None:
    aliases.add(deployed(), "gpt-4o", None)
    with pytest.raises(ApiError) as refused:
        routes.find(routes.load(), "nothing")
    assert "The models that are running: gpt-4o, tiny." in str(refused.value.message)


@pytest.mark.django_db
def test_a_deployment_goes_before_an_alias_of_its_name_and_an_alias_ends_with_its_deployment() -> None:
    first = deployed()
    aliases.add(first, "later", None)
    second = deployed("later", port=10)
    assert routes.load()["later"].replicas[0].origin.port == second.port
    first.delete()
    assert not Alias.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["", " ", "a b", "../m", "m/", "m\0", "ä", "x" * 121, "tiny", "other", "taken"])
def test_a_name_that_cannot_be_or_leads_elsewhere_is_refused(name: str) -> None:
    aliases.add(deployed("other", port=10), "taken", None)
    with pytest.raises(Problem) as refused, transaction.atomic():
        aliases.add(deployed(), name, None)
    assert refused.value.next_step
    assert Alias.objects.count() == 1


@pytest.mark.django_db
def test_no_deployment_has_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "MOST", 2)
    found = deployed()
    for name in ("a", "b"):
        aliases.add(found, name, None)
    with pytest.raises(Problem, match="at most 2"):
        aliases.add(found, "c", None)


@pytest.mark.django_db
def test_aliases_are_added_and_removed_on_the_deployments_page(mei: Client) -> None:
    page = deployed().get_absolute_url()
    made = mei.post(reverse("alias-add", args=["tiny"]), {"alias": " Qwen/Qwen2.5:14b "})
    assert (made.status_code, made["Location"]) == (302, page)
    assert "Qwen/Qwen2.5:14b" in mei.get(page).content.decode()
    again: Any = mei.post(reverse("alias-add", args=["tiny"]), {"alias": "Qwen/Qwen2.5:14b"})
    assert (again.status_code, "is an alias of tiny already" in again.content.decode()) == (409, True)
    mei.post(reverse("alias-remove", args=["tiny"]), {"alias": "Qwen/Qwen2.5:14b"})
    assert "Qwen/" not in mei.get(page).content.decode()


@pytest.mark.django_db
def test_a_viewer_changes_no_alias(mei: Client) -> None:
    found = deployed()
    User.objects.get().groups.clear()
    assert mei.post(reverse("alias-add", args=["tiny"]), {"alias": "a"}).status_code == 403
    aliases.add(found, "a", None)
    assert mei.post(reverse("alias-remove", args=["tiny"]), {"alias": "a"}).status_code == 403
    assert reverse("alias-remove", args=["tiny"]) not in mei.get(found.get_absolute_url()).content.decode()
