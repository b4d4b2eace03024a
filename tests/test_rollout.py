"""Rollouts on this machine with a stand-in engine: each failure named, nothing left behind, stops that stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from pytest_django import Settings

from controlplane.problems import Problem
from controlplane.secrets import Secret
from deployments import engine as engine_module
from deployments.gateway import routes
from deployments.gateway.client import Origin
from deployments.models import Deployment
from deployments.rollout import exchange
from deployments.rollout import stories as rollout
from deployments.rollout.replacing import Way
from deployments.states import DeploymentState, ReplicaState
from nodes import ending, hosts, logs, preparation, registration, runs, signals, tasks
from nodes.models import Job, Node, Run
from nodes.registration import Login
from nodes.states import FINISHED, JOB_ACTIVE, JobState, NodeState, RunState
from nodes.watch import Watch
from tests.support import sshd as sshd_support
from tests.support.rolling import only, reach, rolled_out, until
from tests.support.sshd import free_port
from tests.support.stand_in_engine import StandInEngine
from tests.support.stand_in_hub import MODEL, StandInHub, serving

pytestmark = [
    pytest.mark.valkey, pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_ports", "few_pythons")
]
LOGS = Path(__file__).parent / "logs"


def server(deployment: Deployment) -> Job:
    job = only(deployment).server
    assert job is not None
    return job


def steps(deployment: Deployment) -> dict[str, str]:
    run = Run.objects.filter(about=deployment.subject).latest("pk")
    return {step.kind: step.state for step in run.steps.all()}


def test_a_rollout_ends_ready_after_a_real_answer(quarterdeck: Watch, deployment: Deployment) -> None:
    ready = rolled_out(deployment)
    assert steps(deployment)["packages"] == RunState.SKIPPED
    assert steps(deployment)["verify"] == RunState.DONE
    assert (only(ready).percent, only(ready).measured["weights_gib"]) == (100, 0.25)
    assert engine_module.prompt(only(ready), 1, timeout=5).status_code == 200


@pytest.mark.sshd
def test_a_server_that_only_ssh_reaches_is_served_through_ssh(
    quarterdeck: Watch, engine: StandInEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sshd").mkdir()
    server = sshd_support.start(tmp_path / "sshd")
    login = Login("far", server.address, server.port, server.user, private_key=Secret(server.key))
    node = registration.register(login, server.host_key.line, None)
    Node.objects.filter(pk=node.pk).update(root=str(engine.root))
    preparation.check(node.fresh(), None)
    # The server binds to an address that the control plane does not try, as behind a firewall.
    monkeypatch.setattr("deployments.rollout.serving.inner_address", lambda node: "127.0.0.9")
    monkeypatch.setattr("deployments.upstream.inner_address", lambda node: "127.0.0.9")
    until(lambda: node.fresh().state == NodeState.READY)
    ready = rolled_out(rollout.create("far", Deployment.DEMO, node.fresh(), free_port(), {}, None))
    assert only(ready).tunnel
    assert engine_module.ask(only(ready), "GET", "/v1/models", timeout=5).json()["data"][0]["id"] == "far"
    rollout.stop(ready, None)
    reach(ready, DeploymentState.STOPPED)
    hosts.close_all()
    server.stop()


def test_a_model_path_that_does_not_exist_is_named_and_nothing_is_started(
    quarterdeck: Watch, node: Node
) -> None:
    deployment = rollout.create("gone", "/data/models/none", node, free_port(), {}, None)
    rollout.start(deployment, None)
    failed = reach(deployment, DeploymentState.FAILED)
    assert "There is no /data/models/none on this server. Copy the model there" in failed.reason
    assert (steps(deployment)["ray-head"], steps(deployment)["serve"]) == (RunState.SKIPPED, RunState.SKIPPED)
    assert not Job.objects.filter(state__in=JOB_ACTIVE).exists()


def test_a_model_of_a_hub_is_fetched_once_and_served_without_the_hub(
    quarterdeck: Watch, node: Node, settings: Settings
) -> None:
    hub = StandInHub()
    with serving(hub) as settings.HF_ENDPOINT:
        deployment = rollout.create("tiny", f"hf:{MODEL}", node, free_port(), {}, None)
        deployment = rolled_out(deployment)
    assert "hf--lab--tiny" in Node.objects.get().facts.models
    rollout.stop(deployment, None)
    rolled_out(reach(deployment, DeploymentState.STOPPED))


def test_a_hub_that_is_away_is_named_with_what_to_do(quarterdeck: Watch, node: Node, settings: Settings) -> None:
    settings.HF_ENDPOINT = "http://127.0.0.1:9"
    deployment = rollout.create("tiny", f"hf:{MODEL}", node, free_port(), {}, None)
    rollout.start(deployment, None)
    failed = reach(deployment, DeploymentState.FAILED)
    assert "cannot be reached at http://127.0.0.1:9" in failed.reason
    assert "Set a mirror on the Models page" in failed.reason


@pytest.mark.parametrize(("behaviour", "chats"), [("serve", True), ("base", False)])
def test_it_is_known_whether_a_model_can_chat(
    quarterdeck: Watch, deployment: Deployment, engine: StandInEngine, behaviour: str, chats: bool
) -> None:
    engine.behave(behaviour)
    assert only(rolled_out(deployment)).measured["chat_template"] is chats


def test_a_port_in_use_is_named_before_anything_is_started(quarterdeck: Watch, deployment: Deployment) -> None:
    with socket.create_server(("127.0.0.1", deployment.port)):
        rollout.start(deployment, None)
        failed = reach(deployment, DeploymentState.FAILED)
    assert f"Port {deployment.port} on here is in use by another program." in failed.reason
    assert "Give the deployment another port" in failed.reason
    assert steps(deployment)["ray-head"] == RunState.SKIPPED
    rolled_out(deployment)


def test_a_start_that_fails_is_diagnosed_from_its_log(
    quarterdeck: Watch, deployment: Deployment, engine: StandInEngine
) -> None:
    engine.behave("fail", str(LOGS / "heads-not-divisible-by-tp.log"))
    rollout.start(deployment, None)
    failed = reach(deployment, DeploymentState.FAILED)
    assert "attention heads" in failed.reason
    assert "See root cause above" not in failed.reason


def test_a_server_that_starts_but_cannot_generate_is_not_ready(
    quarterdeck: Watch, deployment: Deployment, engine: StandInEngine
) -> None:
    engine.behave("mute")
    rollout.start(deployment, None)
    failed = reach(deployment, DeploymentState.FAILED)
    assert "refused a prompt with status 500" in failed.reason
    until(lambda: server(failed).state not in JOB_ACTIVE)


def test_a_server_that_ends_by_itself_is_noticed_whatever_its_status(
    quarterdeck: Watch, deployment: Deployment, engine: StandInEngine
) -> None:
    ready = rolled_out(deployment)
    engine.behave("serve")
    runs.end_job(server(ready), "KILL")
    failed = reach(deployment, DeploymentState.FAILED)
    assert failed.reason.startswith("The model server ended: ")


def test_a_server_that_died_comes_back_by_itself(
    quarterdeck: Watch, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.conf.settings.RESTART_DELAY", 0)
    died = server(rolled_out(deployment))
    runs.end_job(died, "KILL")
    until(lambda: server(deployment) != died)
    reach(deployment, DeploymentState.READY)
    assert (only(deployment).restarts, only(deployment).state) == (1, "ready")
    assert Run.objects.filter(story="recover", state=RunState.DONE).count() == 1


def test_a_start_that_fails_is_not_tried_again_by_itself(
    quarterdeck: Watch, deployment: Deployment, engine: StandInEngine
) -> None:
    engine.behave("fail", str(LOGS / "heads-not-divisible-by-tp.log"))
    rollout.start(deployment, None)
    reach(deployment, DeploymentState.FAILED)
    signals.tick.send(None)
    assert only(deployment).state == "failed"
    assert not Run.objects.exclude(state__in=FINISHED).exists()


@pytest.fixture
def twice(node: Node) -> Deployment:
    """Two copies on one host, each a process of its own."""
    made = rollout.create("twice", Deployment.DEMO, node, free_port(), {}, None)
    Deployment.objects.filter(pk=made.pk).update(executor="mp", copies=2)
    return made.fresh()


def test_copies_have_ports_of_their_own_and_all_are_in_service(quarterdeck: Watch, twice: Deployment) -> None:
    rolled_out(twice)
    first, second = twice.replicas.select_related("deployment", "node")
    assert first.port != second.port
    assert [one.in_service for one in (first, second)] == [True, True]
    assert {origin.port for origin in served(twice)} == {first.port, second.port}
    assert not Job.objects.filter(name="ray").exists()


def served(deployment: Deployment) -> list[Origin]:
    """Where the gateway would send requests now."""
    return [one.origin for one in routes.load()[deployment.name].replicas]


def test_one_of_two_copies_that_dies_leaves_the_other_in_service(quarterdeck: Watch, twice: Deployment) -> None:
    rolled_out(twice)
    first, second = twice.replicas.select_related("server__node")
    assert first.server is not None
    runs.end_job(first.server, "KILL")
    degraded = reach(twice, DeploymentState.DEGRADED)
    assert degraded.reason.startswith("Copy 1: The model server ended: ")
    assert [origin.port for origin in served(twice)] == [second.port]


def test_new_servers_take_over_before_the_old_ones_end(quarterdeck: Watch, twice: Deployment) -> None:
    old = {one.pk for one in rolled_out(twice).replicas.all()}
    assert exchange.forecast(twice) is Way.BESIDE
    Deployment.objects.filter(pk=twice.pk).update(revision=2, options={"seed": 5})
    exchange.replace(twice.fresh(), None)
    seen = set()

    def replaced() -> bool:
        seen.add(len(served(twice)))
        return Run.objects.get(story="replace").state == RunState.DONE

    until(replaced)
    assert min(seen) >= 2
    new = list(twice.replicas.all())
    assert not old & {one.pk for one in new}
    assert [(one.state, one.revision, one.spec["options"]) for one in new] == [("ready", 2, {"seed": 5})] * 2
    assert twice.fresh().state == DeploymentState.READY
    assert Job.objects.filter(name="serve", state__in=JOB_ACTIVE).count() == 2


def test_a_new_revision_that_does_not_start_leaves_the_old_servers_in_service(
    quarterdeck: Watch, twice: Deployment, engine: StandInEngine
) -> None:
    before = served(rolled_out(twice))
    engine.behave("fail", str(LOGS / "heads-not-divisible-by-tp.log"))
    exchange.replace(twice.fresh(), None)
    until(lambda: Run.objects.get(story="replace").state == RunState.FAILED)
    assert twice.fresh().state == DeploymentState.READY
    assert served(twice) == before
    assert "attention heads" in Run.objects.get(story="replace").reason


def test_without_room_for_both_the_old_server_ends_first(quarterdeck: Watch, deployment: Deployment) -> None:
    old = server(rolled_out(deployment))
    assert exchange.forecast(deployment) is Way.AT_ONCE
    exchange.replace(deployment.fresh(), None)
    until(lambda: Run.objects.get(story="replace").state == RunState.DONE)
    assert deployment.fresh().state == DeploymentState.READY
    assert old.fresh().state not in JOB_ACTIVE
    assert Run.objects.get(story="replace").steps.get(kind="stop-server").reason.startswith("no process is left")


def test_what_does_not_run_is_not_replaced(deployment: Deployment) -> None:
    with pytest.raises(Problem, match="does not run now, so there is nothing to replace"):
        exchange.replace(deployment, None)


def test_stopping_leaves_no_process_and_frees_the_ports(quarterdeck: Watch, deployment: Deployment) -> None:
    ready = rolled_out(deployment)
    rollout.stop(ready, None)
    stopped = reach(deployment, DeploymentState.STOPPED)
    assert steps(stopped) == {"stop-server": RunState.DONE, "stop-ray": RunState.DONE}
    assert not Job.objects.filter(state__in=JOB_ACTIVE).exists()
    for job in Job.objects.select_related("node"):
        assert runs.end_job(job, "TERM") == 0
    with socket.create_server(("127.0.0.1", deployment.port)):
        pass


def test_a_server_that_ignores_the_first_signal_is_killed(
    quarterdeck: Watch, deployment: Deployment, engine: StandInEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodes.ending.GRACE", timedelta(seconds=1))
    engine.behave("stubborn")
    ready = rolled_out(deployment)
    rollout.stop(ready, None)
    reach(deployment, DeploymentState.STOPPED)
    assert runs.end_job(server(ready), "TERM") == 0


def test_a_rollout_can_be_stopped_while_it_loads(
    quarterdeck: Watch, deployment: Deployment, engine: StandInEngine
) -> None:
    engine.behave("slow")
    rollout.start(deployment, None)
    until(lambda: only(deployment).phase == "weights")
    rollout.stop(deployment.fresh(), None)
    reach(deployment, DeploymentState.STOPPED)
    assert not Job.objects.filter(state__in=JOB_ACTIVE).exists()
    first = Run.objects.get(story="rollout")
    assert (first.state, first.reason) == (RunState.FAILED, "stopped on request")


def test_ray_stays_while_another_deployment_uses_it(quarterdeck: Watch, node: Node, deployment: Deployment) -> None:
    other = rollout.create("other", Deployment.DEMO, node, free_port(), {}, None)
    rolled_out(deployment)
    rolled_out(other)
    assert steps(other)["ray-head"] == RunState.SKIPPED
    rollout.stop(deployment.fresh(), None)
    reach(deployment, DeploymentState.STOPPED)
    assert steps(deployment)["stop-ray"] == RunState.SKIPPED
    ray = node.fresh().ray
    assert ray is not None
    assert ray.state == JobState.RUNNING


def test_the_node_of_a_rollout_is_ready_with_it(quarterdeck: Watch, engine: StandInEngine, settings: Settings) -> None:
    settings.LOCAL_NODE_ROOT = str(engine.root)
    deployment = rollout.try_demo(None)
    reach(deployment, DeploymentState.READY)
    assert Node.objects.get().state == NodeState.READY


def test_a_deployment_that_serves_is_not_started_over_its_own_server(
    quarterdeck: Watch, deployment: Deployment
) -> None:
    job = server(rolled_out(deployment))
    with pytest.raises(Problem, match="small is ready and cannot be started now"):
        rollout.start(deployment.fresh(), None)
    assert server(deployment) == job


def test_a_server_that_is_still_being_ended_is_not_forgotten(quarterdeck: Watch, deployment: Deployment) -> None:
    ready = rolled_out(deployment)
    Deployment.objects.filter(pk=ready.pk).update(state=DeploymentState.FAILED)
    for act in (rollout.start, rollout.delete):
        with pytest.raises(Problem, match="still being ended"):
            act(ready.fresh(), None)


def test_a_lost_message_about_a_dead_server_only_delays(
    quarterdeck: Watch, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = rolled_out(deployment)
    job = server(ready)
    with monkeypatch.context() as lost:
        lost.setattr(tasks, "send", lambda *_: None)
        runs.end_job(job, "KILL")
        until(lambda: job.fresh().state not in JOB_ACTIVE)
    assert ready.fresh().state == DeploymentState.READY
    signals.tick.send(None)
    reach(deployment, DeploymentState.FAILED)


def test_what_a_dead_server_left_behind_is_ended_too(
    quarterdeck: Watch, deployment: Deployment, engine: StandInEngine
) -> None:
    engine.behave("litter")
    ready = rolled_out(deployment)
    job = server(ready)
    os.kill(int((engine.root / "server.pid").read_text()), signal.SIGKILL)
    reach(deployment, DeploymentState.FAILED)
    until(lambda: runs.end_job(job, "TERM") == 0)


def test_two_people_pressing_start_at_once_start_one_rollout(quarterdeck: Watch, deployment: Deployment) -> None:
    outcomes: list[str] = []

    def press() -> None:
        try:
            rollout.start(deployment.fresh(), None)
            outcomes.append("started")
        except Problem as problem:
            outcomes.append(problem.what)
        connection.close()

    threads = [threading.Thread(target=press) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["small is rolling out and cannot be started now.", "started"]
    reach(deployment, DeploymentState.READY)
    assert Job.objects.filter(name="serve").count() == 1


def test_a_deployment_that_runs_is_not_deleted(quarterdeck: Watch, deployment: Deployment) -> None:
    rolled_out(deployment)
    with pytest.raises(Problem, match="small is still running"):
        rollout.delete(deployment, None)
    assert Deployment.objects.exists()


def test_a_port_that_another_deployment_has_is_refused(deployment: Deployment, node: Node) -> None:
    with pytest.raises(Problem, match=f"Port {deployment.port} on here belongs to the deployment small"):
        rollout.create("second", Deployment.DEMO, node, deployment.port, {}, None)
    assert Deployment.objects.count() == 1


def test_free_ports_are_given_out_one_by_one(node: Node) -> None:
    first = rollout.create("first", Deployment.DEMO, node, None, {}, None)
    second = rollout.create("second", Deployment.DEMO, node, None, {}, None)
    assert second.port == first.port + 1


def test_leftovers_of_a_failed_deployment_are_ended_on_a_tick(
    quarterdeck: Watch, deployment: Deployment
) -> None:
    ready = rolled_out(deployment)
    assert only(ready).move(ReplicaState.FAILED, "for the test")
    signals.tick.send(None)
    until(lambda: server(ready).state not in JOB_ACTIVE)


def test_the_server_log_is_kept_after_its_end(quarterdeck: Watch, deployment: Deployment) -> None:
    ready = rolled_out(deployment)
    rollout.stop(ready, None)
    reach(deployment, DeploymentState.STOPPED)
    job = server(ready)
    until(job.archive.exists)
    kept = b"".join(logs.read_all(job.fresh()))
    assert b"Application startup complete." in kept


def test_care_of_a_job_that_is_gone_is_no_failure(quarterdeck: Watch, deployment: Deployment) -> None:
    ready = rolled_out(deployment)
    job = server(ready)
    ending.end_unwanted(str(job.pk))
    reach(deployment, DeploymentState.FAILED)
    ending.end_unwanted(str(job.pk))
