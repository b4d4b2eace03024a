"""``/metrics``: for whoever has the token, whatever is away; and every figure of the Grafana dashboard is in it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from controlplane import streams
from deployments.models import Alert, Deployment, Usage
from nodes.models import Cluster, Node
from nodes.telemetry import store

pytestmark = pytest.mark.django_db
DASHBOARD = Path(__file__).resolve().parent.parent / "docs" / "grafana.json"


@pytest.fixture
def world(valkey: str) -> Deployment:
    """One of everything that is measured."""
    node = Node.objects.create(name='te"1', address="10.0.0.1", user="root", state="ready")
    cluster = Cluster.objects.create(name="rack", head=node)
    made = Deployment.objects.create(name="m", model="demo", cluster=cluster, port=1, state="ready")
    copy = made.replicas.create(number=1, node=node, port=1, state="ready")
    sample = {"t": time.time(), "cpu": 50, "mem": [1, 2], "disk": [3, 4], "gpus": [[0, 1, 2, 50, 61, 300.5]]}
    figures = {"t": time.time(), "running": 2, "waiting": 1, "kv": 0.5, "prompt": 10, "generation": 20, "ttft95": 0.1,
               "itl95": 0.01}
    store.add([store.Entry(node.pk, "s", json.dumps(sample)), store.Entry(copy.pk, "r", json.dumps(figures))])
    streams.client().set("watch:seen", time.time())
    user = User.objects.create_user("mei")
    Usage.objects.create(day=timezone.now().date(), user=user, model="m", requests=3, errors=1, prompt_tokens=7,
                         completion_tokens=9)
    Alert.objects.create(kind="disk_full", about=node.subject, name="te1", value="95")
    return made


def ask(settings: Any, token: str | None = None) -> Any:
    return Client().get("/metrics", headers={"Authorization": f"Bearer {token or settings.METRICS_TOKEN}"})


def families(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Name → values of the labels, in the order of their names → value."""
    told: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = tuple(value for _, value in sorted(sample.labels.items()))
            told.setdefault(sample.name, {})[label] = sample.value
    return told


def test_nobody_without_the_token_is_told_anything(settings: Any) -> None:
    assert ask(settings, "wrong").status_code == 401
    assert Client().get("/metrics").status_code == 401
    client = Client()
    client.force_login(User.objects.create_user("mei"))
    assert client.get("/metrics").status_code == 401


def test_nodes_gpus_servers_gateway_and_alerts_are_told(settings: Any, world: Deployment) -> None:
    told = families(ask(settings).content.decode())
    assert told["quarterdeck_node_up"] == {("", 'te"1'): 1}
    assert told["quarterdeck_gpu_memory_used_bytes"] == {("0", 'te"1'): 2**20}
    assert told["quarterdeck_gpu_load_ratio"] == {("0", 'te"1'): 0.5}
    assert told["quarterdeck_server_requests_running"] == {("m", "1"): 2}
    assert told["quarterdeck_gateway_requests_total"] == {("m",): 3}
    assert told["quarterdeck_alerts_firing"] == {("disk_full",): 1}
    assert told["quarterdeck_redis_up"] == {(): 1}
    assert told["quarterdeck_watch_lag_seconds"][()] < 5


def test_without_redis_the_rest_is_told_and_that_it_is_away(settings: Any) -> None:
    Node.objects.create(name="te1", address="10.0.0.1", user="root", state="ready")
    streams.client.cache_clear()
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    told = families(ask(settings).content.decode())
    assert told["quarterdeck_redis_up"] == {(): 0}
    assert told["quarterdeck_node_up"] == {("", "te1"): 0}


def test_what_was_said_long_ago_is_not_told_as_of_now(settings: Any, world: Deployment) -> None:
    node = world.cluster.head
    old = {"t": time.time() - 60, "cpu": 50, "mem": [1, 2], "disk": [3, 4], "gpus": [[0, 1, 2, 50, 61, 300.5]]}
    store.add([store.Entry(node.pk, "s", json.dumps(old))])
    told = families(ask(settings).content.decode())
    assert told["quarterdeck_node_up"] == {("", 'te"1'): 0}
    assert told.get("quarterdeck_gpu_load_ratio", {}) == {}
    assert told["quarterdeck_node_sample_age_seconds"][("", 'te"1')] > 50


def test_every_figure_of_the_dashboard_is_there(settings: Any, world: Deployment) -> None:
    named = set(re.findall(r"quarterdeck_[a-z0-9_]+", DASHBOARD.read_text()))
    assert len(named) > 20
    assert named - set(families(ask(settings).content.decode())) == set()
