"""What a deployment's page says of its servers: where they are, what comes back, whether there is a gap."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from deployments.models import Deployment
from nodes.models import Cluster, Node, Run

pytestmark = pytest.mark.django_db

SIZES = {"weights_bytes": 2**30, "kv_bytes": 2**30, "overhead_bytes": 0}
A10 = {"name": "NVIDIA A10", "memory_total_mib": 23028, "uuid": "u"}


@pytest.fixture
def operator() -> Client:
    user = User.objects.create_user("mei")
    user.groups.add(Group.objects.get_or_create(name="operator")[0])
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def deployment() -> Deployment:
    """Ready, with two copies on the two GPUs of one host."""
    gpus = [{**A10, "index": 0, "memory_used_mib": 20000}, {**A10, "index": 1, "memory_used_mib": 20000}]
    node = Node.objects.create(name="te1", address="10.0.0.1", state="ready", facts_json={"gpus": gpus})
    cluster = Cluster.objects.create(name="lab", head=node)
    node.cluster = cluster
    node.save()
    placement: list[dict[str, Any]] = [{"host": "te1", "gpu": gpu, "rank": gpu, **SIZES} for gpu in (0, 1)]
    layout = {"tensor": 1, "pipeline": 1, "replicas": 2}
    plan = {"layout": layout, "placement": placement, "kv_tokens": 9, "max_concurrency": 1.0}
    made = Deployment.objects.create(
        name="qwen", model="/m", cluster=cluster, port=20700, state="ready", copies=2, executor="mp", plan=plan)
    for place in placement:
        made.replicas.create(
            number=place["rank"] + 1, node=node, port=20700 + place["rank"], state="ready", placement=[place],
            spec={"executor": "mp", "options": {}})
    return made


def page(client: Client, deployment: Deployment) -> str:
    response: Any = client.get(deployment.get_absolute_url())
    assert response.status_code == 200
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", response.content.decode())))


def test_each_server_is_told_with_its_place(operator: Client, deployment: Deployment) -> None:
    text = page(operator, deployment)
    assert "Model servers Copy 1 ready te1 , GPU 0, port 20700" in text
    assert "Copy 2 ready te1 , GPU 1, port 20701" in text


def test_it_is_said_before_whether_a_replacement_makes_a_gap(operator: Client, deployment: Deployment) -> None:
    assert "the copies are replaced one after another" in page(operator, deployment)
    Deployment.objects.update(copies=1)
    deployment.replicas.filter(number=2).delete()
    assert "There will be a gap" in page(operator, deployment)
    facts = Node.objects.get().facts_json
    facts["gpus"][0]["memory_used_mib"] = 0
    Node.objects.update(facts_json=facts)
    assert "There is no gap: new servers start beside" in page(operator, deployment)


def test_a_replacement_that_cannot_be_says_why(operator: Client, deployment: Deployment) -> None:
    Deployment.objects.update(copies=3, plan={})
    assert "qwen wants 3 GPUs, and te1 has 2." in page(operator, deployment)


def test_a_newer_revision_than_the_servers_have_is_offered(operator: Client, deployment: Deployment) -> None:
    Deployment.objects.update(revision=4)
    assert "The new ones run revision 4." in page(operator, deployment)


def test_what_comes_back_by_itself_says_when_and_can_be_given_up(operator: Client, deployment: Deployment) -> None:
    soon = timezone.now() + timedelta(seconds=70)
    deployment.replicas.update(state="waiting", restart_at=soon, restarts=2, reason="The model server ended: x")
    Deployment.objects.update(state="failed", reason="Copy 1: The model server ended: x")
    text = page(operator, deployment)
    assert "It is started again in 1 min" in text
    assert "Started again by itself 2 times." in text
    assert "Nothing: it is started again by itself. Start does it now, Stop gives it up." in text
    assert 'data-open="stop"' in operator.get(deployment.get_absolute_url()).content.decode()
    Node.objects.update(state="unreachable")
    assert "It is started again as soon as te1 can be reached." in page(operator, deployment)


def test_a_start_that_failed_is_not_said_to_come_back(operator: Client, deployment: Deployment) -> None:
    deployment.replicas.update(state="failed")
    Deployment.objects.update(state="failed", reason="no")
    text = page(operator, deployment)
    assert "started again by itself" not in text.lower()
    assert "Read the log below" in text


@pytest.mark.valkey
def test_restart_replaces_one_copy_after_the_other(operator: Client, deployment: Deployment) -> None:
    response = operator.post(reverse("deployment-restart", args=["qwen"]))
    assert response.status_code in (200, 204, 302)
    run = Run.objects.get(story="replace")
    kinds = [step.kind for step in run.steps.order_by("stage", "pk")]
    one = ["drain", "stop-server", "model", "room", "own-gpus", "serve", "verify", "switch"]
    assert kinds == one * 2
    assert run.options["way"] == "one by one"


@pytest.mark.valkey
def test_the_second_of_two_people_who_restart_is_told_so(operator: Client, deployment: Deployment) -> None:
    address = reverse("deployment-restart", args=["qwen"])
    operator.post(address)
    second = operator.post(address)
    assert second.status_code == 409
    assert "Something else is already being done here." in second.content.decode()
    assert Run.objects.count() == 1
    assert deployment.replicas.count() == 4
