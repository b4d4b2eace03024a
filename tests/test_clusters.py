"""Clusters on one machine with a stand-in Ray: formed, kept up, joined and left, and what of it fails says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from controlplane import streams
from controlplane.problems import Problem
from deployments.models import Deployment
from deployments.rollout import stories as rollout
from deployments.states import DeploymentState
from nodes import hosts, logs, preparation, runs, signals
from nodes.clusters import care as clusters_care
from nodes.clusters import room as clusters_room
from nodes.clusters import steps as clusters_steps
from nodes.clusters import stories as clusters
from nodes.clusters.address import members
from nodes.clusters.view import RayNode, View
from nodes.models import Cluster, Job, Node, Run
from nodes.remote import job as remote_job
from nodes.remote.command import script
from nodes.states import FINISHED, JOB_ACTIVE, ClusterState, JobState, NodeState, RunState
from nodes.watch import Watch
from tests.support.sshd import free_port
from tests.support.stand_in_engine import StandInEngine

pytestmark = [
    pytest.mark.valkey, pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_ports", "few_pythons")
]


@pytest.fixture(autouse=True)
def ports_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """All nodes of these tests share one machine's ports, on which each would find the others' Ray."""
    monkeypatch.setattr(clusters_room, "make_room", lambda step: preparation.gather(step.node))


@pytest.fixture
def nodes(tmp_path: Path) -> list[Node]:
    """Three nodes that are this machine, under loopback addresses of their own."""
    made = []
    for number, name in enumerate(("one", "two", "three"), 3):
        root = str(StandInEngine(tmp_path / name).root)
        made.append(Node.objects.create(
            name=name, kind=Node.Kind.LOCAL, address=f"127.0.0.{number}", root=root, state=NodeState.READY))
    return made


@pytest.fixture
def cluster(nodes: list[Node]) -> Cluster:
    return clusters.create("lab", nodes[0], nodes[1:], network="127.0.0.0/8")


def _told() -> str:
    """What went on, for the message of a test that waited for too long."""
    begun = Run.objects.get(pk=Run.objects.latest("pk").pk).steps.exclude(state=RunState.SKIPPED)
    states = [(cluster.state, cluster.reason) for cluster in Cluster.objects.all()]
    return f"{states} {[(step.kind, step.node.name, step.state, step.reason) for step in begun]}"


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition, doing a worker's part meanwhile."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, _told()
        for run in Run.objects.exclude(state__in=FINISHED):
            runs.advance(run.pk)
        time.sleep(0.05)


def reach(cluster: Cluster, state: ClusterState) -> Cluster:
    until(lambda: cluster.fresh().state == state)
    return cluster.fresh()


def formed(cluster: Cluster) -> Cluster:
    clusters.form(cluster, None)
    return reach(cluster, ClusterState.READY)


def kill(node: Node) -> None:
    """Ray on the node dies, all of it."""
    job = node.fresh().ray
    assert job is not None
    runs.end_job(job, "KILL")
    until(lambda: job.fresh().state not in JOB_ACTIVE)


def steps(run: Run | None) -> dict[tuple[str, str], str]:
    assert run is not None
    return {(step.kind, step.node.name): step.state for step in run.steps.select_related("node")}


def test_a_cluster_is_one_head_and_others_that_join_it(quarterdeck: Watch, cluster: Cluster) -> None:
    formed(cluster)
    told = steps(Run.objects.get(story="form"))
    assert told["ray-head", "one"] == told["ray-worker", "two"] == told["ray-worker", "three"] == RunState.DONE
    view = clusters_steps.ask_view(cluster)
    assert isinstance(view, View)
    assert sorted(node.ip for node in view.alive) == ["127.0.0.3", "127.0.0.4", "127.0.0.5"]
    assert clusters_steps.last_view(cluster) is not None
    clusters.dissolve(cluster, None)
    reach(cluster, ClusterState.STOPPED)
    assert not Job.objects.filter(state__in=JOB_ACTIVE).exists()


def test_a_worker_that_dies_is_brought_back_by_itself(
    quarterdeck: Watch, cluster: Cluster, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.conf.settings.RESTART_DELAY", 0)
    formed(cluster)
    kill(nodes[1])
    until(lambda: Run.objects.filter(story="mend", state=RunState.DONE).exists())
    well = reach(cluster, ClusterState.READY)
    mended = steps(Run.objects.get(story="mend"))
    assert (mended["ray-head", "one"], mended["ray-worker", "two"]) == (RunState.SKIPPED, RunState.DONE)
    assert ("ray-worker", "three") not in mended
    assert well.restarts == 1


def test_a_head_that_dies_takes_the_others_along_and_all_come_back(
    quarterdeck: Watch, cluster: Cluster, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.conf.settings.RESTART_DELAY", 0)
    formed(cluster)
    before = {node.fresh().ray_id for node in nodes}
    kill(nodes[0])
    until(lambda: Run.objects.filter(story="mend", state=RunState.DONE).exists())
    reach(cluster, ClusterState.READY)
    assert not before & {node.fresh().ray_id for node in nodes}


def test_the_page_knows_why_and_when_it_is_tried_again(
    quarterdeck: Watch, cluster: Cluster, nodes: list[Node]
) -> None:
    formed(cluster)
    kill(nodes[2])
    degraded = reach(cluster, ClusterState.DEGRADED)
    assert degraded.reason.startswith("three: Ray ended: ")
    assert degraded.next_try_at is not None
    assert timedelta(seconds=5) < degraded.next_try_at - timezone.now() <= timedelta(seconds=10)
    assert not Run.objects.filter(story="mend").exists()


@pytest.mark.parametrize(("restarts", "seconds"), [(0, 10), (1, 20), (3, 80), (5, 300), (400, 300)])
def test_the_delay_doubles_up_to_five_minutes(restarts: int, seconds: int) -> None:
    delay = (clusters_care._after(restarts) - timezone.now()).total_seconds()
    assert seconds - 2 < delay <= seconds


def test_a_glitch_in_observing_starts_and_ends_nothing(
    quarterdeck: Watch, cluster: Cluster, nodes: list[Node]
) -> None:
    formed(cluster)
    quarterdeck.stop()  # nobody else may look meanwhile
    empty = {"t": time.time() - 60, "ray": "", "python": "", "nodes": [], "waiting": 0}
    streams.client().set(clusters_steps.view_key(cluster.pk), json.dumps(empty))
    Node.objects.update(state=NodeState.UNREACHABLE)
    signals.tick.send(None)
    assert cluster.fresh().state == ClusterState.READY
    assert not Run.objects.filter(story="mend").exists()
    assert all(clusters_steps.running(node.fresh()) for node in nodes)


def test_a_node_that_ray_lost_is_named_and_nothing_is_done_while_it_cannot_be_reached(
    quarterdeck: Watch, cluster: Cluster, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.conf.settings.RESTART_DELAY", 0)
    monkeypatch.setattr(clusters_care, "DEAD_SECONDS", 0.0)
    formed(cluster)
    dead = View(nodes=(RayNode("127.0.0.3", head=True), RayNode("127.0.0.4"),
                       RayNode("127.0.0.5", alive=False, why="health check failed")))  # fmt: skip
    monkeypatch.setattr(clusters_care, "last_view", lambda cluster: _now(dead))
    Node.objects.filter(name="three").update(state=NodeState.UNREACHABLE)
    degraded = reach(cluster, ClusterState.DEGRADED)
    assert degraded.reason == "three: Ray lost it: health check failed"
    signals.tick.send(None)
    assert not Run.objects.filter(story="mend").exists()
    Node.objects.filter(name="three").update(state=NodeState.READY)
    until(lambda: Run.objects.filter(story="mend").exists())
    mended = Run.objects.filter(story="mend").earliest("pk")
    assert {step.kind for step in mended.steps.filter(node__name="three")} == {"ray-end", "ray-room", "ray-worker"}


def _now(view: View) -> View:
    """The view, as if it were seen just now."""
    return View(time.time(), view.ray, view.python, view.nodes, view.waiting)


def test_a_node_joins_a_running_cluster_and_leaves_it(quarterdeck: Watch, nodes: list[Node]) -> None:
    cluster = clusters.create("lab", nodes[0], nodes[1:2], network="127.0.0.0/8")
    formed(cluster)
    clusters.join(cluster, nodes[2], None)
    until(lambda: Run.objects.filter(story="join", state=RunState.DONE).exists())
    assert [node.name for node in members(cluster.fresh())] == ["one", "three", "two"]
    assert cluster.fresh().state == ClusterState.READY
    clusters.leave(cluster.fresh(), nodes[1].fresh(), None)
    until(lambda: Run.objects.filter(story="leave", state=RunState.DONE).exists())
    assert nodes[1].fresh().cluster is None
    assert [node.name for node in members(cluster.fresh())] == ["one", "three"]
    with pytest.raises(Problem, match="one is the head of lab and cannot leave it"):
        clusters.leave(cluster.fresh(), nodes[0].fresh(), None)


def test_a_node_out_of_reach_leaves_at_once_and_its_ray_ends_when_it_is_back(
    quarterdeck: Watch, cluster: Cluster, nodes: list[Node]
) -> None:
    formed(cluster)
    job = nodes[2].fresh().ray
    assert job is not None
    Node.objects.filter(name="three").update(state=NodeState.UNREACHABLE)
    assert clusters.leave(cluster, nodes[2].fresh(), None) is None
    assert nodes[2].fresh().cluster is None
    until(lambda: job.fresh().state not in JOB_ACTIVE)
    assert cluster.fresh().state == ClusterState.READY


def test_watch_looks_again_and_again(quarterdeck: Watch, cluster: Cluster) -> None:
    formed(cluster)
    first = clusters_steps.last_view(cluster)
    assert first is not None
    until(lambda: (clusters_steps.last_view(cluster) or first).t > first.t + 1)
    seen = clusters_steps.last_view(cluster)
    assert seen is not None
    assert len(seen.alive) == 3


def test_a_start_that_fails_says_why_and_leaves_nothing_running(
    quarterdeck: Watch, cluster: Cluster, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = runs.step_kinds["ray-worker"].begin

    def broken(step: Any) -> Any:
        if step.node.name == "three":
            raise Problem("three is broken.", "Mend it.")
        return begin(step)

    kind = runs.step_kinds["ray-worker"]
    monkeypatch.setitem(runs.step_kinds, "ray-worker", type(kind)(**{**kind.__dict__, "begin": broken}))
    clusters.form(cluster, None)
    failed = reach(cluster, ClusterState.FAILED)
    assert failed.reason == "Ray joins on three: three is broken.\nMend it."
    until(lambda: not Job.objects.filter(state__in=JOB_ACTIVE).exists())


def test_a_rollout_goes_over_all_nodes_and_its_stop_ends_ray_on_all(
    quarterdeck: Watch, cluster: Cluster
) -> None:
    options = {"pipeline-parallel-size": 3}
    deployment = rollout.create("small", Deployment.DEMO, cluster, free_port(), options, None)
    rollout.start(deployment, None)
    until(lambda: deployment.fresh().state == DeploymentState.READY)
    told = steps(Run.objects.get(story="rollout"))
    everywhere = {node for kind, node in told if kind == "room"}
    assert everywhere == {"one", "two", "three"}
    assert told["ray-joined", "one"] == told["placement", "one"] == RunState.DONE
    with pytest.raises(Problem, match="small runs on lab"):
        clusters.dissolve(cluster.fresh(), None)
    rollout.stop(deployment.fresh(), None)
    until(lambda: deployment.fresh().state == DeploymentState.STOPPED)
    assert not Job.objects.filter(state__in=JOB_ACTIVE).exists()
    reach(cluster, ClusterState.STOPPED)


def test_what_can_never_be_placed_is_refused_in_seconds(quarterdeck: Watch, cluster: Cluster) -> None:
    deployment = rollout.create("big", Deployment.DEMO, cluster, free_port(), {"pipeline-parallel-size": 4}, None)
    rollout.start(deployment, None)
    until(lambda: deployment.fresh().state == DeploymentState.FAILED)
    assert "wants 4 workers, and this cluster without GPUs has room for 3" in deployment.fresh().reason
    assert not Job.objects.filter(name="serve").exists()


def test_a_cluster_that_was_started_by_hand_outlives_its_deployments(
    quarterdeck: Watch, cluster: Cluster, nodes: list[Node]
) -> None:
    formed(cluster)
    deployment = rollout.create("small", Deployment.DEMO, cluster, free_port(), {}, None)
    rollout.start(deployment, None)
    until(lambda: deployment.fresh().state == DeploymentState.READY)
    rollout.stop(deployment.fresh(), None)
    until(lambda: deployment.fresh().state == DeploymentState.STOPPED)
    assert cluster.fresh().state == ClusterState.READY
    assert all(clusters_steps.running(node.fresh()) for node in nodes)


def test_what_an_ended_job_left_is_ended_and_what_is_somebody_elses_is_not(
    valkey: str, nodes: list[Node], tmp_path: Path
) -> None:
    node = nodes[0]
    old = Job.objects.create(node=node, name="ray-head", service=True, state="lost")
    script = tmp_path / "raylet"
    script.write_text("#!/bin/sh\nwhile :; do sleep 1; done\n")
    script.chmod(0o755)
    place = str(Path(node.root) / "jobs" / str(old.pk))
    ours = subprocess.Popen([script], env={**os.environ, "QD_JOB": place}, start_new_session=True)
    other = subprocess.Popen([script], start_new_session=True)
    try:
        until(lambda: {ours.pid, other.pid} <= {one.pid for one in preparation.gather(node).leftovers}, 20)
        facts = preparation.gather(node)
        assert clusters_room.end_own_leftovers(facts) == 1
        assert ours.wait(10) == -signal.SIGKILL
        foreign = {one.pid for one in clusters_room.foreign_leftovers(facts)}
        assert other.pid in foreign
        assert ours.pid not in foreign
        assert other.poll() is None
        named = [f"{one.pid}:{one.started}" for one in facts.leftovers if one.pid == other.pid]
        with pytest.raises(Problem, match="Other processes run on one by now"):
            clusters.clear(node, [f"{other.pid}:1"], None)
        run = clusters.clear(node, named, None)
        runs.advance(run.pk)
        assert run.fresh().state == RunState.DONE
        assert other.wait(10) == -signal.SIGTERM
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_a_node_goes_into_one_cluster_only(cluster: Cluster, nodes: list[Node]) -> None:
    with pytest.raises(Problem, match="two is in the cluster lab already"):
        clusters.create("second", nodes[1].fresh(), [])
    lonely = Node.objects.create(name="four", address="127.0.0.6", state=NodeState.READY, host_key="x")
    alone = clusters.of_node(lonely)
    clusters.join(cluster, lonely, None)
    assert lonely.fresh().cluster == cluster
    assert not Cluster.objects.filter(pk=alone.pk).exists()


def test_a_network_that_a_node_is_not_in_is_refused(nodes: list[Node]) -> None:
    Node.objects.filter(name="two").update(address="192.0.2.7")
    with pytest.raises(Problem, match=r"two has no address in 127\.0\.0\.0/8"):
        clusters.create("lab", nodes[0], [nodes[1].fresh()], network="127.0.0.0/8")


def test_a_cluster_is_deleted_only_at_rest_and_without_deployments(cluster: Cluster, nodes: list[Node]) -> None:
    deployment = rollout.create("small", Deployment.DEMO, cluster, free_port(), {}, None)
    with pytest.raises(Problem, match="small stands on lab"):
        clusters.delete(cluster)
    deployment.delete()
    Cluster.objects.filter(pk=cluster.pk).update(state=ClusterState.READY)
    with pytest.raises(Problem, match="lab still runs"):
        clusters.delete(cluster)
    Cluster.objects.filter(pk=cluster.pk).update(state=ClusterState.STOPPED)
    clusters.delete(cluster)
    assert nodes[1].fresh().cluster is None


# --- a node out of sight ---


@pytest.fixture
def three_away(quarterdeck: Watch, cluster: Cluster) -> Cluster:
    """The cluster of three is up, and the third node is out of sight; watch sees no node any more."""
    formed(cluster)
    quarterdeck.stop()
    Node.objects.filter(name="three").update(
        state=NodeState.UNREACHABLE, reason="three cannot be reached: timed out.\nCheck the address.")
    return cluster.fresh()


def test_a_start_names_the_node_that_is_out_of_sight_at_once(cluster: Cluster) -> None:
    Node.objects.filter(name="three").update(
        state=NodeState.UNREACHABLE, reason="three cannot be reached: timed out.\nCheck the address.")
    with pytest.raises(Problem) as problem:
        clusters.form(cluster, None)
    assert problem.value.what == "three cannot be reached: timed out."
    assert problem.value.next_step.startswith("Bring it back, then start again.")
    assert (cluster.fresh().state, Run.objects.count()) == (ClusterState.STOPPED, 0)
    one = Deployment.objects.create(name="small", model="demo", cluster=cluster, port=free_port())
    with pytest.raises(Problem, match="three cannot be reached"):
        rollout.start(one, None)
    assert (one.fresh().state, Run.objects.count()) == (DeploymentState.DRAFT, 0)


def test_a_stop_ends_what_is_in_sight_says_what_is_left_and_ends_that_later(
    three_away: Cluster, nodes: list[Node]
) -> None:
    job = Job.objects.create(node=nodes[2], name="ray-worker", state=JobState.RUNNING)  # goes on without its head
    remote_job.start(hosts.shared_host(nodes[2]), logs.place(job), script("exec sleep 300"))
    Node.objects.filter(name="three").update(ray=job)
    run = clusters.dissolve(three_away, None)
    until(lambda: run.fresh().state == RunState.DONE, 40)
    assert [clusters_steps.running(node.fresh()) for node in nodes] == [False, False, True]
    left = "three cannot be reached; what runs there is ended as soon as it can be."
    assert (three_away.fresh().state, three_away.fresh().reason) == (ClusterState.STOPPING, left)
    assert run.steps.get(node__name="three").reason == left
    Node.objects.filter(name="three").update(state=NodeState.READY)
    signals.tick.send(None)
    assert runs.end_job(job) == 0
