"""A deployment of one copy on this machine with a stand-in engine, and a worker's part done while a test waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.models import Deployment, Replica
from deployments.rollout import stories as rollout
from deployments.states import DeploymentState
from nodes import runs
from nodes.models import Node, Run
from nodes.states import FINISHED, NodeState
from tests.support.sshd import free_port
from tests.support.stand_in_engine import StandInEngine


@pytest.fixture
def engine(tmp_path: Path) -> StandInEngine:
    return StandInEngine(tmp_path / "root")


@pytest.fixture
def node(engine: StandInEngine) -> Node:
    return Node.objects.create(
        name="here", kind=Node.Kind.LOCAL, address="127.0.0.1", root=str(engine.root), state=NodeState.READY)


@pytest.fixture
def deployment(node: Node) -> Deployment:
    return rollout.create("small", Deployment.DEMO, node, free_port(), {}, None)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition, doing a worker's part meanwhile."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, [
            (run.story, run.state, run.reason, [(s.kind, s.state, s.reason) for s in run.steps.all()])
            for run in Run.objects.all()]
        for run in Run.objects.exclude(state__in=FINISHED):
            runs.advance(run.pk)
        time.sleep(0.05)


def reach(deployment: Deployment, state: DeploymentState) -> Deployment:
    until(lambda: deployment.fresh().state == state)
    return deployment.fresh()


def rolled_out(deployment: Deployment) -> Deployment:
    rollout.start(deployment, None)
    return reach(deployment, DeploymentState.READY)


def only(deployment: Deployment) -> Replica:
    return deployment.replicas.select_related("deployment", "node", "server").get()
