"""Runs on this machine, with a real watch: stages in order, what is satisfied skipped, nothing run twice or lost."""

from __future__ import annotations

import shutil
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import close_old_connections, connection
from django.utils import timezone
from pytest_django import Settings

from controlplane import streams
from controlplane.lifecycle import Event
from controlplane.problems import Problem
from nodes import hosts, logs, runs, tasks
from nodes.models import Job, Node, Run, Step
from nodes.recipes import Satisfied
from nodes.remote import job as remote_job
from nodes.remote.command import script
from nodes.remote.errors import CommandFailed, Unreachable
from nodes.remote.local import LocalHost
from nodes.runs import Done, StepKind, Story, Waiting
from nodes.states import JobState, RunState
from nodes.telemetry.filing import Filing
from nodes.watch import Frames, Watch, Watcher

pytestmark = [pytest.mark.valkey, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node.objects.create(name="here", kind=Node.Kind.LOCAL, address="127.0.0.1", root=str(tmp_path / "root"))


@pytest.fixture(autouse=True)
def own_kinds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, str]]:
    """Empty registries but for one story; returns what its end was told."""
    settled: list[tuple[str, bool, str]] = []
    monkeypatch.setattr(runs, "step_kinds", {})
    monkeypatch.setattr(runs, "stories", {})
    runs.register_story(Story("tale", "Tale", lambda run, ok, reason: settled.append((run.about, ok, reason))))
    return settled


def kind(name: str, text: str = "", **more: object) -> StepKind:
    made = StepKind(name, name, lambda step: script(text), **more)  # type: ignore[arg-type]
    runs.register(made)
    return made


def begin(node: Node, *stages: str) -> Run:
    return runs.start("tale", node.subject, [[(name, node)] for name in stages], None)


def advance_until(run: Run, *states: str, seconds: float = 30) -> Run:
    deadline = time.monotonic() + seconds
    while (now := run.fresh()).state not in states:
        assert time.monotonic() < deadline, [(s.kind, s.state, s.reason) for s in run.steps.all()]
        runs.advance(run.pk)
        time.sleep(0.05)
    return now


def states(run: Run) -> list[tuple[str, str]]:
    return [(step.kind, step.state) for step in run.steps.all()]


def log_of(run: Run, name: str) -> str:
    job = run.steps.get(kind=name).job
    assert job is not None
    return b"".join(chunk.data for chunk in streams.read(streams.log_key(job.pk), 0)).decode()


def test_stages_run_in_order_and_their_logs_arrive(
    node: Node, watch: Watch, tmp_path: Path, own_kinds: list[tuple[str, bool, str]]
) -> None:
    kind("one", f"echo first; touch {tmp_path}/one")
    kind("two", f"ls {tmp_path}/one && echo second")
    run = advance_until(begin(node, "one", "two"), RunState.DONE)
    assert states(run) == [("one", "done"), ("two", "done")]
    assert log_of(run, "one") == "first\n"
    assert log_of(run, "two").endswith("second\n")
    assert own_kinds == [(node.subject, True, "")]


def test_a_satisfied_step_is_skipped_with_what_is_there(node: Node, valkey: str) -> None:
    runs.register(StepKind("env", "env", lambda step: Satisfied("3.11.7 is there")))
    run = advance_until(begin(node, "env"), RunState.DONE)
    (step,) = run.steps.all()
    assert (step.state, step.reason, step.job) == (RunState.SKIPPED, "3.11.7 is there", None)


def test_a_failed_step_stops_the_run_and_says_why(
    node: Node, watch: Watch, own_kinds: list[tuple[str, bool, str]]
) -> None:
    kind("breaks", "echo no space left on device >&2; exit 4")
    kind("never", "echo unreached")
    run = advance_until(begin(node, "breaks", "never"), RunState.FAILED)
    assert states(run) == [("breaks", "failed"), ("never", "skipped")]
    assert run.reason == "breaks on here: ended with status 4: no space left on device"
    assert own_kinds == [(node.subject, False, run.reason)]
    assert Job.objects.count() == 1


def test_two_nodes_of_a_stage_run_at_the_same_time(node: Node, watch: Watch, tmp_path: Path) -> None:
    other = Node.objects.create(name="there", kind=Node.Kind.LOCAL, address="127.0.0.2", root=str(tmp_path / "other"))
    wait = f"exec sh -c 'until [ -e {tmp_path}/second ]; do sleep 0.05; done'"
    kind("meet", f"mkdir {tmp_path}/met 2>/dev/null && {wait}; touch {tmp_path}/second")
    run = runs.start("tale", "both", [[("meet", node), ("meet", other)]], None)
    assert states(advance_until(run, RunState.DONE)) == [("meet", "done"), ("meet", "done")]


def test_only_one_run_a_subject_is_unfinished(node: Node, valkey: str) -> None:
    kind("one", "true")
    begin(node, "one")
    with pytest.raises(Problem, match="already being done"):
        begin(node, "one")
    assert Run.objects.count() == 1


def test_many_workers_advancing_at_once_start_each_job_once(node: Node, watch: Watch, tmp_path: Path) -> None:
    kind("count", f"echo ran >> {tmp_path}/count")
    run = begin(node, "count")

    def advance() -> None:
        runs.advance(run.pk)
        connection.close()

    threads = [threading.Thread(target=advance) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    advance_until(run, RunState.DONE)
    assert (tmp_path / "count").read_text() == "ran\n"
    assert Job.objects.count() == 1


def test_a_worker_killed_before_it_started_the_job_is_made_up_for(
    node: Node, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind("count", f"echo ran >> {tmp_path}/count")
    run = begin(node, "count")

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(remote_job, "start", die)
        runs.advance(run.pk)
    assert states(run) == [("count", "running")]
    advance_until(run, RunState.DONE)
    assert (tmp_path / "count").read_text() == "ran\n"


def test_a_worker_killed_after_it_started_the_job_does_not_run_it_twice(
    node: Node, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind("count", f"echo ran >> {tmp_path}/count")
    run = begin(node, "count")
    real = remote_job.start

    class Killed(BaseException):
        pass

    def start_and_die(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(remote_job, "start", start_and_die)
        runs.advance(run.pk)
    advance_until(run, RunState.DONE)
    assert (tmp_path / "count").read_text() == "ran\n"


def test_watch_away_while_a_job_ends_loses_nothing(node: Node, valkey: str, tmp_path: Path) -> None:
    kind("talk", "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done")
    run = begin(node, "talk")
    runs.advance(run.pk)
    job = run.steps.get().job
    assert job is not None
    exit_file = Path(logs.place(job)) / "exit"
    deadline = time.monotonic() + 20
    while not exit_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    watching = Watch()
    deadline = time.monotonic() + 20
    while job.fresh().state != JobState.EXITED:
        assert time.monotonic() < deadline
        watching.turn()
        time.sleep(0.05)
    for watcher in watching.watchers.values():
        watcher.stop()
        watcher.join(10)
    runs.advance(run.pk)
    assert run.fresh().state == RunState.DONE
    assert log_of(run, "talk").encode() == (Path(logs.place(job)) / "log").read_bytes()


def test_a_service_is_over_when_its_probe_says_so_and_stays_running(node: Node, watch: Watch) -> None:
    looks: list[int] = []

    def probe(step: Step) -> Done | Waiting:
        looks.append(1)
        return Done("answers") if len(looks) > 2 else Waiting(f"look {len(looks)}")

    kind("serve", "echo up; exec sleep 300", service=True, probe=probe)
    run = advance_until(begin(node, "serve"), RunState.DONE)
    (step,) = run.steps.all()
    assert step.reason == "answers"
    assert step.job is not None
    assert step.job.fresh().state == JobState.RUNNING
    remote_job.signal(hosts.shared_host(node), logs.place(step.job), "KILL")


def test_a_service_that_ends_while_it_starts_has_failed_even_with_status_0(node: Node, watch: Watch) -> None:
    kind("serve", "echo engine core died", service=True, probe=lambda step: Waiting("loading"))
    run = advance_until(begin(node, "serve"), RunState.FAILED)
    assert "engine core died" in run.reason


def test_a_host_that_cannot_be_reached_is_waited_for_and_then_named(
    node: Node, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(step: Step) -> Done:
        raise Unreachable("here", "nothing listens")

    runs.register(StepKind("look", "look", unreachable))
    run = begin(node, "look")
    runs.advance(run.pk)
    assert states(run) == [("look", "waiting")]
    told = run.steps.get().reason  # at once, on the page of the run
    assert told == "here cannot be reached: nothing listens. It is tried again for up to 60 s."
    monkeypatch.setattr(runs, "PATIENCE", timedelta(0))
    runs.advance(run.pk)
    assert run.fresh().state == RunState.FAILED
    assert "here cannot be reached: nothing listens" in run.fresh().reason


def test_what_is_said_of_a_host_is_over_once_it_answers(node: Node, valkey: str) -> None:
    away = [Unreachable("here", "nothing listens")]

    def sometimes(step: Step) -> Waiting:
        if away:
            raise away.pop()
        return Waiting()

    runs.register(StepKind("look", "look", sometimes, lambda step: Waiting()))
    run = begin(node, "look")
    runs.advance(run.pk)
    assert run.steps.get().reason.startswith("here cannot be reached")
    runs.advance(run.pk)
    assert (run.steps.get().state, run.steps.get().reason) == (RunState.RUNNING, "")


def test_a_launch_that_failed_does_not_keep_the_next_run_waiting(
    node: Node, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind("one", "echo ran")

    def full_disk(*_: object) -> None:
        raise CommandFailed("here", 1, "mkdir: No space left on device")

    run = begin(node, "one")
    with monkeypatch.context() as patched:
        patched.setattr(remote_job, "start", full_disk)
        runs.advance(run.pk)
    assert run.fresh().state == RunState.FAILED
    assert "The disk of here is full" in run.fresh().reason
    advance_until(begin(node, "one"), RunState.DONE)


def test_a_step_that_meets_the_unexpected_is_tried_again_and_then_fails(
    node: Node, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(step: Step) -> Done:
        raise KeyError("size")

    runs.register(StepKind("look", "look", broken))
    run = begin(node, "look")
    runs.advance(run.pk)
    assert run.fresh().state == RunState.RUNNING
    monkeypatch.setattr(runs, "PATIENCE", timedelta(seconds=-1))
    runs.advance(run.pk)
    assert run.fresh().state == RunState.FAILED
    assert "something nobody expected: KeyError" in run.fresh().reason


def test_patience_with_a_host_begins_with_its_first_failure(node: Node, valkey: str) -> None:
    def unreachable(step: Step) -> Done:
        raise Unreachable("here", "nothing listens")

    runs.register(StepKind("look", "look", unreachable))
    run = begin(node, "look")
    Run.objects.filter(pk=run.pk).update(state_since=timezone.now() - timedelta(hours=1))
    runs.advance(run.pk)
    assert run.fresh().state == RunState.RUNNING


def test_a_node_has_no_say_over_another_nodes_jobs(node: Node, valkey: str) -> None:
    job = Job.objects.create(node=node, name="talk", state=JobState.RUNNING)
    other = Watcher(Node(pk=77, name="other", kind=Node.Kind.LOCAL, root="/nowhere"), Filing())
    channel = LocalHost().open(script("cat"))
    forged = {"log": str(job.pk), "at": 0, "size": 3}
    other._file(channel, forged, b"lie")
    other._file(channel, {"end": str(job.pk), "state": "exited", "status": 0, "size": 3}, b"")
    channel.close()
    assert streams.end(streams.log_key(job.pk)) is None
    assert job.fresh().state == JobState.RUNNING


@pytest.mark.parametrize("said", [b'{"log": "x", "at": 0, "size": 1000000000000}\n', b"x" * (1 << 20), b"no json\n"])
def test_nonsense_from_a_node_is_refused_before_it_fills_the_memory(said: bytes) -> None:
    class Channel:
        left = said

        def read(self, size: int) -> bytes:
            data, self.left = self.left[:size], self.left[size:]
            return data

    with pytest.raises(ValueError, match=r"a piece of|without an end|Expecting value"):
        list(Frames(Channel()))  # type: ignore[arg-type]


def test_an_ended_log_is_archived_and_can_be_read_without_its_node(node: Node, watch: Watch) -> None:
    kind("talk", "seq 1 300000")
    run = advance_until(begin(node, "talk"), RunState.DONE)
    job = run.steps.get().job
    assert job is not None
    tasks.job_over(str(job.pk))
    shutil.rmtree(logs.place(job))
    streams.client().delete(streams.log_key(job.pk))
    whole = b"".join(logs.read_all(job.fresh()))
    assert whole == b"".join(b"%d\n" % n for n in range(1, 300001))
    assert logs.read(job, 10, 4).data == whole[10:14]


def test_what_old_jobs_left_is_removed_here_and_there(node: Node, watch: Watch, settings: Settings) -> None:
    kind("talk", "echo old")
    job = advance_until(begin(node, "talk"), RunState.DONE).steps.get().job
    assert job is not None
    tasks.job_over(str(job.pk))
    place = Path(logs.place(job))
    assert logs.sweep() == 0
    assert place.exists()
    Job.objects.filter(pk=job.pk).update(ended_at=timezone.now() - timedelta(days=settings.LOG_DAYS + 1))
    assert logs.sweep() == 1
    assert not place.exists()
    assert not job.archive.exists()
    assert logs.sweep() == 0


def test_logs_of_servers_that_are_gone_hold_up_none_of_the_others(
    node: Node, valkey: str, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    gone = Node.objects.create(name="gone", address="10.0.0.9", host_key="x y", state="unreachable")
    now = timezone.now()
    for where, ago in ((node, 9), (gone, 1)):
        for _each in range(3):
            Job.objects.create(
                node=where, name="old", state=JobState.EXITED, log_size=1, ended_at=now - timedelta(hours=ago))
    asked: list[Node] = []
    monkeypatch.setattr(logs, "archive", lambda job: asked.append(job.node))
    tasks.keep_logs()
    assert asked == [node] * 3
    settings.LOG_DAYS = 0
    assert logs.sweep() == 3
    assert Job.objects.filter(swept=False).count() == 3


def test_of_a_log_that_is_too_long_for_the_archive_its_end_is_kept(
    node: Node, watch: Watch, settings: Settings
) -> None:
    settings.LOG_ARCHIVE_BYTES = 1000
    kind("talk", "seq 1 3000")
    job = advance_until(begin(node, "talk"), RunState.DONE).steps.get().job
    assert job is not None
    tasks.job_over(str(job.pk))
    whole = (Path(logs.place(job)) / "log").read_bytes()
    shutil.rmtree(logs.place(job))
    job = job.fresh()
    assert b"".join(logs.read_all(job, len(whole) - 1000)) == whole[-1000:]
    assert logs.times(job, 0, len(whole))


def test_each_change_of_state_left_an_event(node: Node, watch: Watch) -> None:
    kind("one", "true")
    run = advance_until(begin(node, "one"), RunState.DONE)
    events = Event.objects.filter(subject=run.subject).order_by("pk")
    assert [(event.old, event.new) for event in events] == [("waiting", "running"), ("running", "done")]
    close_old_connections()


def test_a_run_is_advanced_by_one_worker_at_a_time_for_as_long_as_it_takes(
    node: Node, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_LEASE_SECONDS", 1)
    begun: list[int] = []

    def slowly(run_id: int) -> None:
        begun.append(run_id)
        if len(begun) == 1:
            time.sleep(2)
            tasks.advance_run(run_id)  # as another worker would: the lease of a second is held all the same

    monkeypatch.setattr(runs, "advance", slowly)
    again: list[int] = []
    monkeypatch.setattr(tasks, "send", lambda task, run_id: again.append(run_id))
    tasks.advance_run(7)
    assert (begun, again) == ([7], [7])
    tasks.advance_run(7)
    assert begun == [7, 7]


def test_the_end_of_a_job_advances_no_run_that_another_worker_advances(
    node: Node, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind("talk", "echo over")
    run = advance_until(begin(node, "talk"), RunState.DONE)
    job = Job.objects.get()
    again: list[int] = []
    monkeypatch.setattr(tasks, "send", lambda task, run_id: again.append(run_id))
    begun: list[int] = []

    def meanwhile(run_id: int) -> None:
        begun.append(run_id)
        if len(begun) == 1:
            tasks.job_over(str(job.pk))

    monkeypatch.setattr(runs, "advance", meanwhile)
    tasks.advance_run(run.pk)
    assert (begun, again) == ([run.pk], [run.pk])


def test_a_killed_worker_holds_a_run_up_for_seconds(node: Node, valkey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[float] = []
    monkeypatch.setattr(runs, "advance", lambda run_id: held.append(streams.client().ttl(f"advancing:{run_id}")))
    tasks.advance_run(7)
    assert 0 < held[0] < 10, "whoever dies now leaves the lease behind for so long"
