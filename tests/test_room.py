"""Room on a node: what the run itself has just seen is not asked again, and anything older is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.problems import Problem
from nodes import preparation
from nodes.clusters import room
from nodes.clusters.steps import plan_of
from nodes.models import Cluster, Job, Node, Run, Step

pytestmark = [pytest.mark.django_db, pytest.mark.valkey]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the nodes that were looked at."""
    found: list[str] = []

    def gather(node: Node) -> object:
        found.append(node.name)
        return node.facts

    monkeypatch.setattr(preparation, "gather", gather)
    return found


@pytest.fixture
def step() -> Step:
    """The room step of a run that looked at the node a second ago and found its environment complete."""
    node = Node.objects.create(name="te1", kind=Node.Kind.LOCAL, facts_at=timezone.now() - timedelta(seconds=1))
    Cluster.objects.create(name="c", head=node)
    run = Run.objects.create(story="rollout", about="deployment:1")
    run.steps.create(stage=0, kind="facts", node=node, state="done")
    run.steps.create(stage=1, kind="packages", node=node, state="skipped")
    made: Step = run.steps.create(stage=2, kind="room", node=node)
    return made


def of_another_run(step: Step) -> None:
    step.run.steps.filter(kind="facts").update(run=Run.objects.create(story="prepare", about="x"))


def after_a_job(step: Step) -> None:
    step.run.steps.filter(kind="packages").update(job=Job.objects.create(node=step.node, name="packages"))


def long_ago(step: Step) -> None:
    Node.objects.update(facts_at=timezone.now() - timedelta(minutes=1))


def test_what_the_run_saw_a_moment_ago_is_not_asked_again(step: Step, looks: list[str]) -> None:
    room.make_room(step)
    assert looks == []


@pytest.mark.parametrize("differs", [of_another_run, after_a_job, long_ago])
def test_what_may_have_changed_is_looked_at(step: Step, looks: list[str], differs: Callable[[Step], None]) -> None:
    differs(step)
    room.make_room(Step.objects.select_related("node").get(pk=step.pk))
    assert looks == ["te1"]


def test_a_port_that_another_program_has_is_named(step: Step, looks: list[str]) -> None:
    port = min(plan_of(Cluster.objects.get()).fixed)
    step.node.facts_json = {"listening": [port]}
    with pytest.raises(Problem, match=f"Port {port} on te1"):
        room.make_room(step)
