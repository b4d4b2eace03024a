"""Ray must have the GPUs before a server is started: what was just let go is waited for, what is not there is not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.problems import Problem
from deployments.models import Deployment
from deployments.rollout import placing, steps
from nodes.clusters import steps as clusters_steps
from nodes.clusters.view import View
from nodes.models import Cluster, Node, Run, Step
from nodes.runs import Done, Waiting

pytestmark = pytest.mark.django_db


@pytest.fixture
def step() -> Step:
    """The look at Ray before a replica of two GPUs is started."""
    node = Node.objects.create(name="te1", address="10.0.0.1")
    cluster = Cluster.objects.create(name="lab", head=node)
    node.cluster = cluster
    node.save()
    deployment = Deployment.objects.create(name="qwen", model="/m", cluster=cluster, port=20700)
    replica = deployment.replicas.create(
        number=1, node=node, port=20700, spec={"options": {"tensor-parallel-size": 2}})
    run = Run.objects.create(story="rollout", about=deployment.subject, state="running")
    return Step.objects.create(
        run=run, stage=0, kind="placement", node=node, about=replica.subject, started_at=timezone.now())


def ray_has(monkeypatch: pytest.MonkeyPatch, used: float, total: float) -> None:
    view = View()
    monkeypatch.setattr(View, "gpus", lambda self: (used, total))
    monkeypatch.setattr(clusters_steps, "fresh_view", lambda cluster: view)
    monkeypatch.setattr(clusters_steps, "ask_view", lambda cluster: view)


def test_gpus_that_were_just_let_go_are_waited_for(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_has(monkeypatch, used=2, total=2)
    assert isinstance(steps._placement(step), Waiting)
    assert isinstance(steps._placed_yet(step), Waiting)
    ray_has(monkeypatch, used=0, total=2)
    assert steps._placed_yet(step) == Done("2 of 2 free")


def test_gpus_that_others_keep_are_not_waited_for_long(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_has(monkeypatch, used=1, total=2)
    assert isinstance(steps._placement(step), Waiting)
    step.started_at = timezone.now() - steps.FREEING - timedelta(seconds=1)
    with pytest.raises(Problem, match="wants 2 workers, and of 2 places in this cluster 1 are free"):
        steps._placed_yet(step)


def test_more_than_ray_has_fails_at_once(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_has(monkeypatch, used=0, total=1)
    with pytest.raises(Problem, match="wants 2 workers"):
        steps._placement(step)


def test_only_the_replica_that_is_started_is_counted(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_has(monkeypatch, used=0, total=2)
    deployment = Deployment.objects.get()
    deployment.replicas.create(number=2, node=step.node, port=20701, spec={"options": {"tensor-parallel-size": 2}})
    assert steps._placement(step) == Done("2 of 2 free")


@pytest.mark.parametrize(
    ("workers", "places"),
    [
        ({"0": ["", 7], "1": ["10.0.0.3", 8]}, [("te1", 0), ("te3", None)]),
        ({"1": ["10.0.0.2", 8], "0": ["10.0.0.3", 7]}, [("te3", None), ("te2", 1)]),
        ({"0": ["", 7]}, [("te1", 0), ("te2", 1)]),  # the other one was not read
        ({"0": ["", 7], "1": ["10.9.9.9", 8]}, [("te1", 0), ("te2", 1)]),  # nobody's address
    ],
)
def test_workers_sit_where_they_say_and_not_where_the_plan_would_have_them(
    step: Step, workers: dict[str, list[object]], places: list[tuple[str, int | None]]
) -> None:
    replica = Deployment.objects.get().replicas.get()
    replica.measured = {"world_size": 2, "workers": workers}
    replica.placement = [{"host": "te1", "gpu": 0}, {"host": "te2", "gpu": 1}]
    names = {"10.0.0.1": "te1", "10.0.0.2": "te2", "10.0.0.3": "te3"}
    assert [(place["host"], place["gpu"]) for place in placing.seated(replica, names)] == places
