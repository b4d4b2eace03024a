"""What the playground keeps: conversations are their owner's alone, bounded, and told back as they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from deployments.models import Conversation, Deployment, Message, Replica
from deployments.playground import api, saved
from nodes.models import Cluster, Job, Node

pytestmark = pytest.mark.django_db

PNG = "data:image/png;base64,iVBORw0KGgo="
PROMPT = {"role": "prompt", "turn": 0, "text": "世界上最高的山峰是哪个?", "images": [], "settings": {"top_p": "0.7"}}
ANSWER = {"role": "answer", "turn": 0, "model": "qwen", "text": "珠穆朗玛峰", "state": "done", "mode": "chat"}


@pytest.fixture
def mei() -> Client:
    return _signed_in("mei")


def _signed_in(name: str) -> Client:
    client = Client()
    client.force_login(User.objects.create_user(name))
    return client


@pytest.fixture
def deployment() -> Deployment:
    node = Node.objects.create(name="te1", address="te1", user="root")
    cluster = Cluster.objects.create(name="te1", head=node)
    server = Job.objects.create(node=node, name="server")
    made = Deployment.objects.create(name="qwen", model="/m", cluster=cluster, port=20700, state="ready")
    made.replicas.create(number=1, node=node, port=20700, state="ready", server=server)
    return made


def post(client: Client, address: str, body: object) -> Any:
    return client.post(address, json.dumps(body), content_type="application/json")


def begin(client: Client, **more: object) -> int:
    response = post(client, reverse("conversations"), {"title": "Summits", **more})
    assert response.status_code == 201, response.content
    return int(response.json()["id"])


def add(client: Client, pk: int, **message: object) -> Any:
    return post(client, reverse("conversation-messages", args=[pk]), message)


def told(client: Client, pk: int) -> Any:
    return client.get(reverse("conversation", args=[pk])).json()


# --- the page ---


def columns(client: Client, *models: str) -> list[str]:
    page = client.get(reverse("playground"), {"model": models}).content.decode()
    return [part.split('"')[0] for part in page.split('data-column="')[1:]]


def test_the_address_names_the_deployments_that_are_compared_each_once_and_at_most_four(
    mei: Client, deployment: Deployment
) -> None:
    for name in "abcde":
        Deployment.objects.create(name=name, model="/m", cluster=deployment.cluster, port=20701)
    assert columns(mei, "b", "gone", "a", "b") == ["b", "a"]
    assert columns(mei, *"abcde") == list("abcd")
    assert columns(mei) == ["qwen"]


def test_a_place_offers_no_deployment_that_another_place_has(mei: Client, deployment: Deployment) -> None:
    Deployment.objects.create(name="a", model="/m", cluster=deployment.cluster, port=20701)
    page = mei.get(reverse("playground"), {"model": ["a", "qwen"]}).content.decode()
    assert page.count('<option value="a"') == page.count('<option value="qwen"') == 1
    assert 'id="add-column"' not in page


def test_a_model_measured_to_have_no_chat_template_is_marked(mei: Client, deployment: Deployment) -> None:
    assert "data-untemplated" not in mei.get(reverse("playground")).content.decode()
    Replica.objects.update(measured={"chat_template": False})
    assert "data-untemplated" in mei.get(reverse("playground")).content.decode()


# --- kept and told ---


def test_a_conversation_is_told_back_as_it_was(mei: Client, deployment: Deployment) -> None:
    pk = begin(mei)
    add(mei, pk, **{**PROMPT, "images": [PNG]})
    figures = {"ttft": 74.5, "took": 1900.0, "speed": 41.3, "tokens": 71, "prompt": 9, "thought": 3, "thinking": 8.5}
    add(mei, pk, **ANSWER, reasoning="用户问", figures={**figures, "finish": "stop"})
    add(mei, pk, **{**ANSWER, "model": "base", "state": "failed", "why": "It is stopped.", "mode": "completion"})
    (turn,) = told(mei, pk)["turns"]
    assert turn["prompt"]["text"] == PROMPT["text"]
    assert turn["prompt"]["images"] == [PNG]
    assert turn["prompt"]["settings"] == {"top_p": "0.7"}
    first, second = turn["answers"]
    assert (first["model"], first["text"], first["reasoning"]) == ("qwen", "珠穆朗玛峰", "用户问")
    assert first["figures"] == {**figures, "finish": "stop"}
    assert (second["state"], second["why"], second["mode"]) == ("failed", "It is stopped.", "completion")


def test_an_answer_remembers_which_start_of_the_deployment_gave_it(mei: Client, deployment: Deployment) -> None:
    pk = begin(mei)
    add(mei, pk, **PROMPT)
    old = add(mei, pk, **ANSWER).json()["server"]
    replica = deployment.replicas.get()
    assert old == str(replica.server_id)
    replica.server = Job.objects.create(node=replica.node, name="server")
    replica.save()
    add(mei, pk, **ANSWER)
    assert [answer["server"] for answer in told(mei, pk)["turns"][0]["answers"]] == [old, str(replica.server_id)]


def test_the_list_has_the_newest_first_with_its_models(mei: Client) -> None:
    first, second, third = begin(mei), begin(mei, title="  Other\n words "), begin(mei)
    for model in ("b", "a", "b"):
        add(mei, first, **{**ANSWER, "model": model, "turn": 1})
    listed = mei.get(reverse("conversations")).json()["conversations"]
    assert [(one["id"], one["title"], one["prompts"], one["models"]) for one in listed] == [
        (first, "Summits", 2, ["a", "b"]),
        (third, "Summits", 0, []),
        (second, "Other words", 0, []),
    ]


def test_an_edited_prompt_goes_on_from_a_copy_of_what_was_before(mei: Client) -> None:
    pk = begin(mei)
    for turn in range(3):
        add(mei, pk, **{**PROMPT, "turn": turn, "text": f"prompt {turn}"})
        add(mei, pk, **{**ANSWER, "turn": turn})
    copy = begin(mei, copy_of=pk, before=2)
    assert [turn["prompt"]["text"] for turn in told(mei, copy)["turns"]] == ["prompt 0", "prompt 1"]
    assert len(told(mei, pk)["turns"]) == 3
    assert 0 < Conversation.objects.get(pk=copy).size < Conversation.objects.get(pk=pk).size


def test_deleting_a_conversation_leaves_nothing_of_it(mei: Client) -> None:
    pk = begin(mei)
    add(mei, pk, **PROMPT)
    assert mei.delete(reverse("conversation", args=[pk])).status_code == 204
    assert not Message.objects.exists()
    assert told(mei, pk)["error"]["message"] == "This conversation is not there any more."


# --- whose it is ---


def test_nobody_reads_changes_copies_or_deletes_the_conversation_of_somebody_else(mei: Client) -> None:
    pk = begin(mei)
    other = _signed_in("other")
    User.objects.filter(username="other").update(is_superuser=True)
    address = reverse("conversation", args=[pk])
    assert other.get(address).status_code == other.delete(address).status_code == 404
    assert add(other, pk, **PROMPT).status_code == 404
    assert post(other, reverse("conversations"), {"title": "t", "copy_of": pk, "before": 9}).status_code == 404
    assert other.get(reverse("conversations")).json() == {"conversations": []}
    assert Conversation.objects.count() == 1


def test_a_request_of_another_site_changes_nothing(mei: Client) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get(username="mei"))
    assert post(strict, reverse("conversations"), {"title": "forged"}).status_code == 403
    assert not Conversation.objects.exists()


# --- bounds ---


@pytest.mark.parametrize(
    "change",
    [
        {"turn": -1},
        {"turn": saved.MOST_MESSAGES},
        {"text": "x" * 400_001},
        {"text": None},
        {"images": ["https://example.org/a.png"]},
        {"images": ["data:text/html;base64,AAAA"]},
        {"images": [PNG] * 9},
        {"settings": {str(number): "" for number in range(25)}},
        {"role": "system"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_a_sentence(change: dict[str, Any], mei: Client) -> None:
    response = add(mei, begin(mei), **{**PROMPT, **change})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("This cannot be kept: ")
    assert not Message.objects.exists()


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'"text"'], ids=repr)
def test_broken_json_is_refused(body: bytes, mei: Client) -> None:
    address = reverse("conversation-messages", args=[begin(mei)])
    assert mei.post(address, body, content_type="application/json").status_code == 400


def test_a_form_of_another_kind_is_refused(mei: Client) -> None:
    assert mei.post(reverse("conversations"), {"title": "a form"}).status_code == 400


def test_a_body_that_is_too_large_is_not_read(mei: Client) -> None:
    body = json.dumps({**PROMPT, "text": "x" * api.MOST_SENT})
    address = reverse("conversation-messages", args=[begin(mei)])
    assert mei.post(address, body, content_type="application/json").status_code == 413


def test_five_megabytes_of_pictures_fit(mei: Client) -> None:
    picture = "data:image/jpeg;base64," + "A" * (5 * 1024 * 1024 * 4 // 3)
    assert add(mei, begin(mei), **{**PROMPT, "images": [picture]}).status_code == 201


def test_a_full_conversation_says_so(mei: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "MOST_MESSAGES", 2)
    pk = begin(mei)
    assert [add(mei, pk, **PROMPT).status_code for _again in range(3)] == [201, 201, 409]
    monkeypatch.setattr(saved, "MOST_BYTES", 400)
    response = add(mei, begin(mei), **{**PROMPT, "text": "x" * 400})
    assert response.json()["error"]["message"].startswith("This conversation is full")


def test_the_oldest_conversations_make_room_for_the_newest(mei: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "MOST_CONVERSATIONS", 3)
    mine = [begin(mei) for _number in range(5)]
    assert set(Conversation.objects.values_list("pk", flat=True)) == set(mine[2:])
    monkeypatch.setattr(saved, "MOST_BYTES_OF_USER", 3000)
    add(mei, mine[3], **{**PROMPT, "text": "x" * 2000})
    add(mei, mine[4], **{**PROMPT, "text": "x" * 2000})
    assert list(Conversation.objects.values_list("pk", flat=True)) == [mine[4]]


def test_characters_that_postgresql_refuses_are_left_out(mei: Client) -> None:
    pk = begin(mei, title="a\0b")
    assert add(mei, pk, **{**PROMPT, "text": "nul\0nul", "settings": {"sys\0tem": "\0"}}).status_code == 201
    whole = told(mei, pk)
    assert (whole["title"], whole["turns"][0]["prompt"]["text"]) == ("ab", "nulnul")
    assert whole["turns"][0]["prompt"]["settings"] == {"system": ""}


def test_a_surrogate_alone_is_no_text(mei: Client) -> None:
    response = mei.post(
        reverse("conversation-messages", args=[begin(mei)]),
        b'{"role": "prompt", "turn": 0, "text": "\\ud800"}', content_type="application/json")
    assert response.status_code == 400
