"""Replicas of a deployment: what the one server that there was became, where they go, which are in service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps.registry import Apps
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from controlplane.problems import Problem
from deployments.models import Deployment
from deployments.rollout import placing, serving
from nodes.models import Cluster, Node

BEFORE = [("deployments", "0004_aliases_and_controlling_keys"), ("nodes", "0003_step_about")]
AFTER = [("deployments", "0006_servers_are_replicas")]


def migrated(targets: list[tuple[str, str]]) -> Apps:
    executor = MigrationExecutor(connection)
    executor.migrate(targets)
    return executor.loader.project_state(targets).apps


@pytest.fixture
def before(transactional_db: None) -> Iterator[Apps]:
    """The database as it was when a deployment had one server."""
    yield migrated(BEFORE)
    call_command("migrate", verbosity=0)


@pytest.mark.parametrize(
    ("was", "became"), [("ready", "ready"), ("degraded", "ready"), ("rolling_out", "rolling_out"), ("failed", "failed")]
)
def test_a_server_of_before_becomes_the_first_replica(before: Apps, was: str, became: str) -> None:
    node = before.get_model("nodes", "Node").objects.create(name="te1", address="10.0.0.1")
    job = before.get_model("nodes", "Job").objects.create(node=node, name="serve")
    cluster = before.get_model("nodes", "Cluster").objects.create(name="te1", head=node)
    deployments: Any = before.get_model("deployments", "Deployment").objects
    deployments.create(
        name="qwen", model="/m", cluster=cluster, port=20700, state=was, server_id=job.pk, tunnel=True,
        options={"seed": 1}, measured={"kv_tokens": 9}, percent=40)  # fmt: skip
    deployments.create(name="draft", model="/m", cluster=cluster, port=20701)
    after = migrated(AFTER)
    (replica,) = after.get_model("deployments", "Replica").objects.all()
    assert (replica.deployment.name, replica.number, replica.state) == ("qwen", 1, became)
    assert (replica.node_id, replica.port, replica.server_id, replica.tunnel) == (node.pk, 20700, job.pk, True)
    assert (replica.measured, replica.percent) == ({"kv_tokens": 9}, 40)
    assert replica.spec["options"] == {"seed": 1}


# --- where they go ---


@pytest.fixture
def deployment(transactional_db: None) -> Deployment:
    """Of one host with four GPUs, not started."""
    gpus = [{"index": index, "name": "NVIDIA A10", "memory_total_mib": 23028} for index in range(4)]
    node = Node.objects.create(name="te1", address="10.0.0.1", facts_json={"gpus": gpus})
    cluster = Cluster.objects.create(name="lab", head=node)
    return Deployment.objects.create(name="qwen", model="/m", cluster=cluster, port=20940, executor="mp", copies=2)


def test_copies_without_a_plan_get_gpus_of_their_own(deployment: Deployment) -> None:
    deployment.options = {"tensor-parallel-size": 2}
    first, second = placing.place(deployment)
    assert (first.gpus, second.gpus) == ([0, 1], [2, 3])
    assert (first.port, second.port) == (20940, 20941)
    assert serving._workers(second).gpus == [2, 3]


def test_more_copies_than_gpus_are_refused(deployment: Deployment) -> None:
    deployment.copies = 5
    with pytest.raises(Problem, match="qwen wants 5 GPUs, and te1 has 4"):
        placing.place(deployment)
    assert not deployment.replicas.exists()


def test_copies_go_where_the_plan_puts_them(deployment: Deployment) -> None:
    Node.objects.create(name="te2", address="10.0.0.2")
    ranks = [("te1", 0), ("te1", 1), ("te2", 0), ("te2", 1)]
    placement = [{"host": host, "gpu": gpu, "rank": rank} for rank, (host, gpu) in enumerate(ranks)]
    deployment.plan = {"layout": {"tensor": 2, "pipeline": 1, "replicas": 2}, "placement": placement}
    first, second = placing.place(deployment)
    assert [(one.node.name, one.gpus, one.port) for one in (first, second)] == [
        ("te1", [0, 1], 20940), ("te2", [0, 1], 20940)]  # fmt: skip


def test_with_ray_servers_run_on_the_head_and_ray_gives_the_gpus(deployment: Deployment) -> None:
    deployment.executor = "ray"
    first, second = placing.place(deployment)
    assert [(one.node.name, one.placement) for one in (first, second)] == [("te1", []), ("te1", [])]
    assert first.port != second.port


def test_new_ones_have_other_numbers_and_ports_than_those_that_run(deployment: Deployment) -> None:
    old = placing.place(deployment)
    new = placing.beside(deployment)
    assert [one.number for one in (*old, *new)] == [1, 2, 3, 4]
    assert len({one.port for one in (*old, *new)}) == 4


def test_a_server_is_started_again_from_what_it_was_started_from(deployment: Deployment) -> None:
    deployment.options = {"seed": 1}
    deployment.plan = {"flags": {"max-model-len": 4096, "distributed-executor-backend": "mp"}}
    (first, _second) = placing.place(deployment)
    deployment.options = {"seed": 2}
    assert first.fresh().spec["options"] == {"max-model-len": 4096, "seed": 1}
