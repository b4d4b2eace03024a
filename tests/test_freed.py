"""A stop proves that the memory is back: on the GPUs that the server had, and by name where it is not."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.problems import Problem
from deployments.models import Deployment, Replica
from deployments.rollout import freed
from nodes.facts import Facts
from nodes.models import Cluster, Job, Node
from nodes.telemetry import store

pytestmark = [pytest.mark.valkey, pytest.mark.django_db]


@pytest.fixture
def node() -> Node:
    return Node.objects.create(name="te1", address="10.0.0.1")


@pytest.fixture
def replica(node: Node) -> Replica:
    cluster = Cluster.objects.create(name="lab", head=node)
    deployment = Deployment.objects.create(name="qwen", model="/m", cluster=cluster, port=20700)
    job = Job.objects.create(node=node, name="serve")
    return deployment.replicas.create(
        number=1, node=node, port=20700, state="stopping", server=job, measured={"weights_gib": 8.0},
        placement=[{"host": "te1", "gpu": 1, "rank": 0}], spec={"executor": "mp"})  # fmt: skip


@pytest.fixture
def used(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """MiB that the two GPUs of the node have in use when it is asked; the sampler said 100 and 20000 before."""
    rows = [[0, 100, 23028, 0, 40, 60], [1, 20000, 23028, 90, 70, 300]]
    sample = {"t": 1.0, "cpu": 1.0, "mem": [1, 2], "disk": [1, 2], "gpus": rows}
    monkeypatch.setattr(store, "newest_of_nodes", lambda pks: {node.pk: sample})
    now = [100, 300]

    def gather(asked: Node) -> Facts:
        gpus = [{"index": i, "name": "A10", "uuid": f"u{i}", "memory_used_mib": mib} for i, mib in enumerate(now)]
        holds: list[dict[str, Any]] = [{"pid": 4242, "command": "VLLM::Worker", "gpu_uuid": "u1", "used_mib": now[1]}]
        return Facts.from_json({"gpus": gpus, "gpu_processes": holds})

    monkeypatch.setattr("nodes.preparation.gather", gather)
    return now


def test_what_came_back_is_said(replica: Replica, used: list[int]) -> None:
    freed.remember(replica)
    assert freed.proof(replica, last_look=False) == "no process is left; free again: 19.2 GiB on te1"


def test_memory_that_is_not_back_yet_is_waited_for_and_then_named(replica: Replica, used: list[int]) -> None:
    freed.remember(replica)
    used[1] = 19000
    assert freed.proof(replica, last_look=False) is None
    with pytest.raises(Problem, match=r"GPU 1: pid 4242, 18\.6 GiB, VLLM::Worker"):
        freed.proof(replica, last_look=True)


def test_what_others_hold_on_other_gpus_does_not_count(replica: Replica, used: list[int]) -> None:
    freed.remember(replica)
    used[0] = 23000
    assert freed.proof(replica, last_look=False) == "no process is left; free again: 19.2 GiB on te1"


def test_another_server_that_took_the_memory_meanwhile_is_no_failure(replica: Replica, used: list[int]) -> None:
    freed.remember(replica)
    used[1] = 21000
    deployment = replica.deployment
    deployment.replicas.create(number=2, node=replica.node, port=20701, state="rolling_out")
    assert freed.proof(replica, last_look=True) == "no process is left"
