"""Servers that end by themselves come back, no faster than they should, and never because somebody could not look."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.utils import timezone

from controlplane import streams
from controlplane.lifecycle import Event
from controlplane.problems import Problem
from deployments import canary, mending
from deployments.models import Deployment, Replica
from deployments.rollout import stories as rollout
from deployments.web import server_page
from nodes import signals, tasks
from nodes.models import Cluster, Job, Node, Run
from nodes.runs import advance, cancel
from nodes.states import FINISHED, RunState
from nodes.telemetry import store

pytestmark = [pytest.mark.valkey, pytest.mark.django_db(transaction=True)]


class Clock:
    """What `mending` takes for now."""

    def __init__(self) -> None:
        self.now = timezone.now()

    def __call__(self) -> datetime:
        return self.now

    def on(self, **more: float) -> None:
        self.now += timedelta(**more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(mending, "now", made)
    return made


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks that workers would do."""
    names: list[str] = []
    monkeypatch.setattr(tasks, "send", lambda task, *_arguments: names.append(task.__name__))
    return names


@pytest.fixture
def deployment() -> Deployment:
    """Ready, with two replicas on two nodes."""
    nodes = [Node.objects.create(name=f"te{n}", address=f"10.0.0.{n}", state="ready") for n in (1, 2)]
    cluster = Cluster.objects.create(name="lab", head=nodes[0])
    made = Deployment.objects.create(name="qwen", model="/m", cluster=cluster, port=20700, state="ready", copies=2)
    for number, node in enumerate(nodes, 1):
        job = Job.objects.create(node=node, name="serve", service=True, state="running")
        made.replicas.create(number=number, node=node, port=20700, state="ready", server=job, spec={"options": {}})
    return made


def replica(deployment: Deployment, number: int = 1) -> Replica:
    return deployment.replicas.select_related("deployment", "node", "server").get(number=number)


def dies(deployment: Deployment, number: int = 1) -> None:
    """The replica's server ends by itself, and is noticed."""
    job = replica(deployment, number).server
    assert job is not None
    job.move("exited", exit_status=0, log_size=0)
    streams.append(streams.log_key(job.pk), 0, b"the engine is dead\n")
    signals.job_ended.send(Job, job=job)


def tick() -> None:
    signals.tick.send(None)


def told(deployment: Deployment) -> tuple[str, str]:
    fresh = deployment.fresh()
    return fresh.state, fresh.reason


def unfinished() -> Run | None:
    return Run.objects.exclude(state__in=FINISHED).first()


def concludes(run: Run | None, *, ok: bool, reason: str = "") -> None:
    """The run ends, as the engine of runs would have it."""
    assert run is not None
    run.move(RunState.RUNNING)
    assert run.move(RunState.DONE if ok else RunState.FAILED, reason)
    mending._recovered(run, ok, reason)


# --- what the state follows from ---


def test_a_deployment_with_some_of_its_replicas_is_degraded_and_without_any_failed(
    deployment: Deployment, clock: Clock
) -> None:
    dies(deployment, 1)
    state, reason = told(deployment)
    assert state == "degraded"
    assert reason.startswith("Copy 1: The model server ended: ")
    dies(deployment, 2)
    assert told(deployment)[0] == "failed"


def test_the_end_of_a_server_is_noticed_once_however_often_it_is_said(deployment: Deployment, clock: Clock) -> None:
    dies(deployment)
    signals.job_ended.send(Job, job=replica(deployment).server)
    assert replica(deployment).failures == 1
    assert Event.objects.filter(subject=deployment.subject).count() == 1


def test_servers_that_are_about_to_take_over_are_not_missed_yet(deployment: Deployment, clock: Clock) -> None:
    Deployment.objects.update(copies=4)
    for number in (3, 4):
        node = Node.objects.get(name="te1")
        deployment.replicas.create(number=number, node=node, port=20800 + number, state="waiting")
    mending.assess(deployment.fresh())
    assert told(deployment) == ("ready", "")
    dies(deployment, 1)
    assert told(deployment)[0] == "degraded"


# --- started again ---


def test_the_delay_doubles_from_ten_seconds_to_five_minutes() -> None:
    seconds = [mending.delay(failures).total_seconds() for failures in range(1, 9)]
    assert seconds == [10, 20, 40, 80, 160, 300, 300, 300]


def test_a_server_that_died_is_started_again_after_its_delay(deployment: Deployment, clock: Clock) -> None:
    dies(deployment)
    clock.on(seconds=9)
    tick()
    assert unfinished() is None
    clock.on(seconds=1)
    tick()
    run = unfinished()
    assert run is not None
    assert (run.story, run.about) == ("recover", deployment.subject)
    assert {step.about for step in run.steps.filter(kind="serve")} == {replica(deployment).subject}
    assert (replica(deployment).restarts, told(deployment)[0]) == (1, "degraded")


def test_a_replica_that_is_back_makes_its_deployment_ready(deployment: Deployment, clock: Clock) -> None:
    dies(deployment)
    clock.on(seconds=10)
    tick()
    assert replica(deployment).move("rolling_out")
    concludes(unfinished(), ok=True)
    assert told(deployment) == ("ready", "")
    assert replica(deployment).restarts == 1


def test_with_no_replica_left_the_deployment_rolls_out_again(deployment: Deployment, clock: Clock) -> None:
    dies(deployment, 1)
    dies(deployment, 2)
    clock.on(seconds=10)
    tick()
    assert told(deployment)[0] == "rolling_out"
    concludes(unfinished(), ok=False, reason="serve on te1: no memory")
    state, reason = told(deployment)
    assert state == "failed"
    assert "no memory" in reason


def test_failures_in_a_row_wait_longer_and_a_long_life_is_forgiven(deployment: Deployment, clock: Clock) -> None:
    dies(deployment)
    for failures in (2, 3):
        clock.on(minutes=5)
        tick()
        concludes(unfinished(), ok=False, reason="no memory")
        now = replica(deployment)
        assert now.failures == failures
        assert now.restart_at == clock.now + mending.delay(failures)
    Replica.objects.filter(number=1).update(state="ready", state_since=clock.now)
    clock.on(minutes=11)
    dies(deployment)
    assert replica(deployment).failures == 1


def test_a_deployment_is_not_started_again_more_than_once_a_minute(deployment: Deployment, clock: Clock) -> None:
    dies(deployment, 1)
    dies(deployment, 2)
    clock.on(seconds=10)
    tick()
    concludes(unfinished(), ok=False, reason="no memory")
    clock.on(seconds=49)  # both are due
    tick()
    assert unfinished() is None
    clock.on(seconds=11)
    tick()
    assert unfinished() is not None
    assert Run.objects.filter(story="recover").count() == 2


def test_two_watchers_start_it_once(deployment: Deployment, clock: Clock) -> None:
    dies(deployment)
    clock.on(seconds=10)
    stale = replica(deployment)
    assert mending.recover(stale) is not None
    assert mending.recover(stale) is None


@pytest.mark.parametrize("state", ["stopping", "stopped", "failed", "draft"])
def test_what_was_stopped_or_never_started_is_left_alone(deployment: Deployment, clock: Clock, state: str) -> None:
    deployment.replicas.update(state="failed" if state == "failed" else "stopped")
    Deployment.objects.update(state=state)
    clock.on(hours=1)
    tick()
    assert not Run.objects.exclude(story="stop").exists()
    assert told(deployment)[0] == state


def test_a_server_that_still_runs_is_ended_before_it_is_started_again(
    deployment: Deployment, clock: Clock, sent: list[str]
) -> None:
    assert mending.ended(replica(deployment), "mute")
    clock.on(minutes=1)
    tick()
    assert unfinished() is None
    assert "end_unwanted" in sent


# --- nodes and sight ---


def test_what_cannot_be_looked_at_is_not_started_again(deployment: Deployment, clock: Clock) -> None:
    Node.objects.update(state="unreachable")
    clock.on(hours=1)
    tick()
    assert unfinished() is None
    assert told(deployment)[0] == "ready"


def test_a_node_that_is_away_with_its_server_degrades_and_its_return_mends(
    deployment: Deployment, clock: Clock
) -> None:
    Node.objects.filter(name="te2").update(state="unreachable")
    canary.conclude(replica(deployment, 2), canary.Found.OUT_OF_SIGHT)
    assert told(deployment) == ("degraded", "Copy 2: te2 cannot be reached.")
    clock.on(hours=1)
    tick()
    assert unfinished() is None
    Node.objects.filter(name="te2").update(state="ready")
    canary.conclude(replica(deployment, 2), canary.Found.WORKS)
    assert told(deployment) == ("ready", "")
    assert replica(deployment, 2).restarts == 0


def test_a_server_that_died_with_its_node_waits_for_the_node(deployment: Deployment, clock: Clock) -> None:
    dies(deployment, 2)
    Node.objects.filter(name="te2").update(state="unreachable")
    clock.on(hours=1)
    tick()
    assert unfinished() is None
    Node.objects.filter(name="te2").update(state="ready")
    tick()
    assert unfinished() is not None


def test_a_server_waits_for_a_node_that_has_just_fallen_silent(deployment: Deployment, clock: Clock) -> None:
    dies(deployment, 2)
    clock.on(seconds=10)
    key = store.node_key(Node.objects.get(name="te2").pk)
    seconds, _micros = streams.client().time()
    streams.client().xadd(key, {"s": "{}"}, id=f"{(seconds - 20) * 1000}-0")
    assert mending.due(deployment) == []
    streams.client().xadd(key, {"s": "{}"})
    assert mending.due(deployment) == [replica(deployment, 2)]


def test_a_server_waits_for_ray_on_its_own_nodes_and_for_no_other(deployment: Deployment, clock: Clock) -> None:
    Cluster.objects.update(state="degraded")
    for name, state in (("te1", "exited"), ("te2", "running")):
        node = Node.objects.get(name=name)
        ray = Job.objects.create(node=node, name="ray-worker", service=True, state=state)
        Node.objects.filter(pk=node.pk).update(cluster=Cluster.objects.get(), ray=ray)
    dies(deployment, 1)
    dies(deployment, 2)
    clock.on(seconds=10)
    assert mending.due(deployment) == [replica(deployment, 2)]
    (waits, waits_not) = Deployment.objects.get().replicas.order_by("number")
    assert server_page._hope(waits) == "It is started again as soon as Ray is back on te1."
    assert server_page._hope(waits_not) == "It is started again in a moment."


def test_a_server_on_a_node_out_of_sight_that_answers_stays_in_service(deployment: Deployment, clock: Clock) -> None:
    Node.objects.filter(name="te2").update(state="unreachable")
    canary.conclude(replica(deployment, 2), canary.Found.WORKS)
    assert told(deployment)[0] == "ready"


def test_a_worker_whose_host_is_away_takes_its_server_out_of_service_and_names_the_host(
    deployment: Deployment, clock: Clock
) -> None:
    Node.objects.create(name="te3", address="10.0.0.3", state="unreachable")
    deployment.replicas.filter(number=2).update(placement=[{"host": "te2", "gpu": 0}, {"host": "te3", "gpu": 0}])
    for _again in range(canary.MOST_FAILURES):
        canary.conclude(replica(deployment, 2), canary.Found.MUTE)
    assert told(deployment) == ("degraded", "Copy 2: te3 cannot be reached.")
    assert replica(deployment, 2).failures == 0
    Node.objects.filter(name="te3").update(state="ready")
    canary.conclude(replica(deployment, 2), canary.Found.WORKS)
    assert told(deployment) == ("ready", "")


def test_what_is_amiss_with_the_clusters_ray_is_told_with_a_server_that_ended(
    deployment: Deployment, clock: Clock
) -> None:
    Cluster.objects.update(state="degraded", reason="te2: Ray ended: raylet was killed by signal 9")
    dies(deployment)
    assert told(deployment)[1].endswith("the engine is dead (te2: Ray ended: raylet was killed by signal 9)")


def test_a_recovery_that_was_given_up_is_made_again(deployment: Deployment, clock: Clock) -> None:
    dies(deployment, 1)
    dies(deployment, 2)
    clock.on(seconds=10)
    tick()
    run = unfinished()
    assert run is not None
    cancel(run, "the worker lost it")
    tick()
    assert told(deployment)[0] == "failed"
    clock.on(minutes=1)
    tick()
    assert unfinished() is not None


def test_a_start_whose_run_was_given_up_is_made_again(deployment: Deployment, clock: Clock) -> None:
    dies(deployment)
    clock.on(seconds=10)
    tick()
    run = unfinished()
    assert run is not None
    replica(deployment).move("rolling_out")
    tick()
    assert replica(deployment).state == "rolling_out"
    cancel(run, "replaced on request")
    tick()
    now = replica(deployment)
    assert (now.state, now.restart_at) == ("waiting", clock.now + mending.delay(2))


# --- the canary ---


class Engine(BaseHTTPRequestHandler):
    """Answers prompts with ``status``, and counts tokens when ``tokens`` is a number."""

    status, asked = 200, 0
    tokens: int | None = None

    def do_GET(self) -> None:
        text = f'vllm:generation_tokens_total{{engine="0",model_name="qwen"}} {self.tokens}.0\n'
        self._answer(200 if self.tokens is not None else 404, text)

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self.status, json.dumps({"choices": [{"text": "a"}]}))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def engine(deployment: Deployment) -> Iterator[type[Engine]]:
    """The server of the first replica."""
    kind = type("OneEngine", (Engine,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        Node.objects.filter(name="te1").update(address="127.0.0.1")
        deployment.replicas.filter(number=1).update(port=listening.server_address[1])
        yield kind
        listening.shutdown()


def test_an_engine_that_generates_nothing_is_taken_for_dead_after_three_prompts(
    deployment: Deployment, engine: type[Engine], sent: list[str]
) -> None:
    engine.status = 500
    for failures in range(canary.MOST_FAILURES):
        assert (replica(deployment).state, failures) == ("ready", failures)
        canary.look_at(replica(deployment).pk)
    now = replica(deployment)
    assert (now.state, now.reason) == ("waiting", "The server answers, but its engine generates nothing any more.")
    assert "end_unwanted" in sent


def test_one_good_answer_forgets_the_bad_ones(deployment: Deployment, engine: type[Engine]) -> None:
    for status in (500, 500, 200, 500, 500):
        engine.status = status
        canary.look_at(replica(deployment).pk)
    assert replica(deployment).state == "ready"


def test_a_prompt_that_is_refused_is_an_answer(deployment: Deployment, engine: type[Engine]) -> None:
    engine.status = 400
    assert canary.look(replica(deployment)) is canary.Found.WORKS


def test_no_prompt_is_sent_while_traffic_generates(deployment: Deployment, engine: type[Engine]) -> None:
    engine.tokens = 0
    canary.look(replica(deployment))
    engine.tokens = 1  # the canary's own
    canary.look(replica(deployment))
    assert engine.asked == 2
    for engine.tokens in (90, 180):
        assert canary.look(replica(deployment)) is canary.Found.WORKS
    assert engine.asked == 2


def test_a_busy_engine_that_is_slow_to_answer_but_generates_is_well(
    deployment: Deployment, engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "PATIENCE", 0.2)
    hold = threading.Event()

    def busy(self: Engine) -> None:
        engine.tokens = 50
        hold.wait(10)

    monkeypatch.setattr(engine, "do_POST", busy)
    engine.tokens = 0
    assert canary.look(replica(deployment)) is canary.Found.WORKS
    hold.set()


def test_a_busy_engine_that_refuses_a_prompt_but_generates_is_well(
    deployment: Deployment, engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Engine) -> None:
        engine.tokens = 50
        self._answer(503, "{}")

    monkeypatch.setattr(engine, "do_POST", busy)
    engine.tokens = 0
    assert canary.look(replica(deployment)) is canary.Found.WORKS
    engine.tokens = 50
    assert canary.look(replica(deployment)) is canary.Found.WORKS  # by its counter
    assert canary.look(replica(deployment)) is canary.Found.MUTE


def test_an_engine_that_hangs_is_mute(
    deployment: Deployment, engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "PATIENCE", 0.2)
    hold = threading.Event()
    monkeypatch.setattr(engine, "do_POST", lambda self: hold.wait(10))
    engine.tokens = 7
    streams.client().set(f"canary:tokens:{replica(deployment).server_id}", 7)
    assert canary.look(replica(deployment)) is canary.Found.MUTE
    hold.set()


@pytest.mark.parametrize(("listens", "found"), [(True, canary.Found.OUT_OF_SIGHT), (False, canary.Found.MUTE)])
def test_a_refused_connection_counts_only_if_the_node_itself_sees_the_port_closed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, listens: bool, found: canary.Found
) -> None:
    Node.objects.filter(name="te1").update(address="127.0.0.1")
    Replica.objects.filter(number=1).update(port=9)

    class Seen:
        listening = (9,) if listens else ()

    monkeypatch.setattr("nodes.preparation.gather", lambda node: Seen)
    assert canary.look(replica(deployment)) is found


def test_a_mute_engine_on_a_node_out_of_sight_is_no_reason_to_start_it_again(
    deployment: Deployment, engine: type[Engine]
) -> None:
    Node.objects.filter(name="te1").update(state="unreachable")
    engine.status = 500
    for _ in range(6):
        canary.look_at(replica(deployment).pk)
    assert replica(deployment).state == "unreachable"


def test_each_replica_is_looked_at_once_in_a_while(deployment: Deployment, sent: list[str]) -> None:
    tick()
    tick()
    assert sent.count("look_at") == 2


# --- stopped while a node is out of sight ---


def test_a_stop_leaves_what_is_out_of_sight_says_so_and_goes_on_when_it_is_back(deployment: Deployment) -> None:
    job = replica(deployment, 1).server
    assert job is not None
    job.move("exited", exit_status=0, log_size=0)
    Node.objects.filter(name="te2").update(state="unreachable")
    run = rollout.stop(deployment, None)
    for step in run.steps.exclude(node__name="te2"):  # what was in sight is stopped
        step.move("running")
        step.move("done")
    advance(run.pk)
    left = "te2 cannot be reached; what runs there is ended as soon as it can be."
    assert run.fresh().state == "done"
    assert run.steps.get(kind="stop-server", node__name="te2").reason == left
    assert (deployment.fresh().state, deployment.fresh().reason) == ("stopping", left)
    assert [one.state for one in deployment.replicas.all()] == ["stopped", "stopping"]
    tick()
    assert Run.objects.filter(story="stop").count() == 1
    Node.objects.filter(name="te2").update(state="ready")
    tick()
    again = Run.objects.filter(story="stop").latest("pk")
    assert {step.node.name for step in again.steps.filter(kind="stop-server")} == {"te2"}


def test_a_deployment_stuck_on_a_node_that_is_gone_for_good_can_be_deleted(
    deployment: Deployment, sent: list[str]
) -> None:
    Deployment.objects.update(state="stopping")
    with pytest.raises(Problem, match="qwen is still running"):
        rollout.delete(deployment, None)
    Node.objects.update(state="unreachable")
    rollout.delete(deployment, None)
    assert not Deployment.objects.exists()
    tick()  # and what is left is ended if the node ever comes back
    assert sent.count("end_unwanted") == 2
