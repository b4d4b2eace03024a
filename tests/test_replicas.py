"""Replicas of a deployment: what the one server that there was became, where they go, which are in service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps.registry import Apps
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

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
