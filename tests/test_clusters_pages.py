"""The pages of clusters: what is shown, who may press what, and how bad input is told."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from nodes.clusters import care as clusters_care
from nodes.clusters import stories as clusters
from nodes.clusters.view import RayNode, View
from nodes.models import Cluster, Job, Node, Run
from nodes.web import cluster_pages as clusters_pages

pytestmark = [pytest.mark.django_db, pytest.mark.valkey]


def signed_in(role: str) -> Client:
    user = User.objects.create_user(role, password="harbour-light-7")
    user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator() -> Client:
    return signed_in("operator")


@pytest.fixture
def nodes() -> list[Node]:
    return [_node(number) for number in (1, 2, 3)]


def _node(number: int, **more: Any) -> Node:
    address = f"10.0.0.1{number}"
    facts = {"cpus": 8, "addresses": [address], "interfaces": [{"name": "ens3", "address": address}],
             "gpus": [{"index": 0, "name": "NVIDIA A10", "uuid": f"GPU-{number}"}],
             "environment": {"python": "3.11.7", "packages": {"ray": "2.60.0", "vllm": "0.32.0"}}, **more}  # fmt: skip
    return Node.objects.create(name=f"te{number}", address=address, user="root", state="ready", host_key="ssh-ed25519",
                               facts_json=facts, facts_at=timezone.now())  # fmt: skip


@pytest.fixture
def cluster(nodes: list[Node]) -> Cluster:
    return clusters.create("lab", nodes[0], nodes[1:2], network="10.0.0.0/24")


@pytest.fixture
def running(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> View:
    """The cluster, up, and what was last seen of it."""
    earlier = timezone.now() - timedelta(minutes=5)
    for node in cluster.nodes.all():
        Node.objects.filter(pk=node.pk).update(
            ray=Job.objects.create(node=node, name="ray-worker", service=True, state="running", created_at=earlier))
    Cluster.objects.update(state="ready")
    offers = {"CPU": 8.0, "GPU": 1.0}
    view = View(time.time(), "2.60.0", "3.11.7", (
        RayNode("10.0.0.11", head=True, total=offers, used={"GPU": 1.0, "CPU": 2.0}),
        RayNode("10.0.0.12", total=offers, used={"GPU": 0.0, "CPU": 0.0})))  # fmt: skip
    see(monkeypatch, view)
    return view


def see(monkeypatch: pytest.MonkeyPatch, view: View) -> None:
    for module in (clusters_pages, clusters_care):
        monkeypatch.setattr(module, "last_view", lambda cluster: view)


def text_of(response: Any) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


FORM = {"name": "lab", "nodes": ["te1", "te2"], "head": "te2", "network": "10.0.0.0/24"}


def test_a_cluster_is_made_of_ready_nodes(operator: Client, nodes: list[Node]) -> None:
    response = operator.post(reverse("cluster-new"), {**FORM, "resources": "te1: fast-disk=2"})
    assert response.headers["Location"] == reverse("cluster", args=["lab"])
    made = Cluster.objects.get()
    assert (made.head.name, made.state, made.network) == ("te2", "stopped", "10.0.0.0/24")
    assert {node.name: node.ray_resources for node in made.nodes.all()} == {"te1": {"fast-disk": 2.0}, "te2": {}}
    assert not Run.objects.exists()


def test_it_is_started_at_once_where_that_is_pressed(operator: Client, nodes: list[Node]) -> None:
    operator.post(reverse("cluster-new"), {**FORM, "start": "1"})
    assert Run.objects.get().story == "form"
    assert Cluster.objects.get().kept


@pytest.mark.parametrize(("wrong", "says"), [
    ({"nodes": []}, "Choose at least one node."),
    ({"name": "a b"}, "A name has letters, digits and hyphens only"),
    ({"network": "10.0.0.0/24; reboot"}, "This is neither a subnet, as 10.0.0.0/24, nor the name of an interface"),
    ({"network": "192.168.0.0/24"}, "has no address in 192.168.0.0/24"),
    ({"port_base": "80"}, "A port here is a number from 1024 to 65000."),
    ({"resources": "te1: GPU=8"}, "is not understood. Write it as te1: fast-disk=1"),
    ({"resources": "te1: disk=1.5"}, "is not understood."),
    ({"resources": "te9: disk=1"}, "te9 is not one of the nodes chosen."),
])  # fmt: skip
def test_what_is_wrong_in_the_form_is_said(
    operator: Client, nodes: list[Node], wrong: dict[str, Any], says: str
) -> None:
    response = operator.post(reverse("cluster-new"), {**FORM, **wrong})
    assert response.status_code == 409
    assert says in text_of(response)
    assert not Cluster.objects.exists()


def test_a_node_of_another_cluster_cannot_be_chosen_and_it_says_why(operator: Client, cluster: Cluster) -> None:
    page = operator.get(reverse("cluster-new")).content.decode()
    assert "te1 is in the cluster lab already." in page
    assert re.search(r'value="te1" disabled', page)
    assert not re.search(r'value="te3" disabled', page)


def test_the_page_shows_what_ray_has(operator: Client, cluster: Cluster, running: View) -> None:
    page = text_of(operator.get(cluster.get_absolute_url()))
    for shown in ("10.0.0.11", "1 / 1 NVIDIA A10", "2 / 8", "0 / 8", "Ray 2.60.0, Python 3.11.7",
                  "1 of 2 in use", "2 of 16 in use", "20600"):  # fmt: skip
        assert shown in page
    assert "last seen" not in page


def test_an_old_view_says_that_it_is_old(
    operator: Client, cluster: Cluster, running: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, replace(running, t=time.time() - 70))
    assert re.search(r"last seen 1 min \d+ s ago", text_of(operator.get(cluster.get_absolute_url())))


def test_gpus_that_ray_and_nvidia_smi_count_differently_are_a_named_problem(
    operator: Client, cluster: Cluster, running: View
) -> None:
    facts = Node.objects.get(name="te2").facts_json
    Node.objects.filter(name="te2").update(facts_json={**facts, "gpus": facts["gpus"] * 2})
    assert "Ray counts 1 GPUs on te2, nvidia-smi 2." in text_of(operator.get(cluster.get_absolute_url()))


def test_versions_that_differ_are_a_named_problem(operator: Client, nodes: list[Node], cluster: Cluster) -> None:
    facts = nodes[1].facts_json
    older = {**facts["environment"], "packages": {"ray": "2.58.0", "vllm": "0.32.0"}}
    Node.objects.filter(name="te2").update(facts_json={**facts, "environment": older})
    assert "Ray is not the same on all nodes: te1 2.60.0, te2 2.58.0." in text_of(
        operator.get(cluster.get_absolute_url()))


def test_a_cluster_that_lost_a_node_says_which_why_and_when_it_goes_on(
    operator: Client, cluster: Cluster, running: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = timezone.now() + timedelta(seconds=40)
    Cluster.objects.update(state="degraded", reason="te2: Ray lost it: no heartbeats", restarts=2, next_try_at=soon)
    dead = replace(running.nodes[1], alive=False, why="no heartbeats")
    see(monkeypatch, replace(running, nodes=(running.nodes[0], dead)))
    page = text_of(operator.get(cluster.get_absolute_url()))
    assert "te2: Ray lost it: no heartbeats" in page
    assert re.search(r"What is missing is started again in \d+ s\. Tried 2 times so far\.", page)


def test_somebody_elses_ray_is_shown_and_only_an_operator_may_end_it(operator: Client, nodes: list[Node]) -> None:
    foreign = [{"pid": 4711, "user": "anna", "command": "raylet --x", "ours": False, "job": "", "started": 99}]
    _node(4, leftovers=foreign)
    found = clusters.create("lab", Node.objects.get(name="te4"), [])
    assert "4711 anna raylet --x" in text_of(operator.get(found.get_absolute_url()))
    assert "End this process" in text_of(operator.get(found.get_absolute_url()))
    assert "End this process" not in text_of(signed_in("viewer").get(found.get_absolute_url()))
    assert not Run.objects.exists()
    operator.post(reverse("cluster-clear", args=["lab"]), {"node": "te4", "process": "4711:99"})
    assert Run.objects.get().options["processes"] == ["4711:99"]


def test_a_hostile_reason_is_shown_as_text(operator: Client, cluster: Cluster, running: View) -> None:
    Cluster.objects.update(state="degraded", reason="<script>alert(1)</script>")
    assert "<script>alert" not in operator.get(cluster.get_absolute_url()).content.decode()


def test_network_and_resources_are_changed_at_rest_only(operator: Client, cluster: Cluster) -> None:
    address = reverse("cluster-edit", args=["lab"])
    operator.post(address, {"network": "ens3", "port_base": "30000", "resources": "te2: licence=1"})
    assert (cluster.fresh().network, cluster.fresh().port_base) == ("ens3", 30000)
    assert Node.objects.get(name="te2").ray_resources == {"licence": 1.0}
    Cluster.objects.update(state="ready")
    assert operator.post(address, {"network": ""}).status_code == 409
    assert cluster.fresh().network == "ens3"


def test_a_page_of_many_clusters_asks_the_database_a_bounded_number_of_times(
    operator: Client, django_assert_max_num_queries: Any
) -> None:
    for number in range(4, 9):
        clusters.create(f"c{number}", _node(number), [])
    with django_assert_max_num_queries(16):
        operator.get(reverse("clusters"))
