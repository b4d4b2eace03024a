"""A node is removed: what Quarterdeck put on it is gone, what others have there is as it was; or it is forgotten."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse

from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes import access, acquaintances, hosts, logs, registration, removal, runs, tasks
from nodes.facts import Facts
from nodes.models import Cluster, Job, Node, Run
from nodes.recipes import Satisfied, Site
from nodes.recipes import removal as recipes
from nodes.registration import Login
from nodes.remote import job as remote_job
from nodes.remote.command import Command, script
from nodes.remote.errors import SignInRefused
from nodes.states import JobState, NodeState
from nodes.watch import Watch
from nodes.web.pages import fingerprint
from tests.support import sshd as sshd_support
from tests.support.sshd import Sshd

pytestmark = [pytest.mark.sshd, pytest.mark.valkey, pytest.mark.django_db(transaction=True)]

BLOCK = "# >>> quarterdeck lab >>>\nours\n# <<< quarterdeck lab <<<\n"


@pytest.fixture(autouse=True)
def no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "send", lambda task, *words: None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    running = sshd_support.start(tmp_path)
    yield running
    hosts.close_all()
    running.stop()


@pytest.fixture
def node(server: Sshd) -> Node:
    """Registered and, as far as this needs, prepared."""
    login = Login("te1", server.address, server.port, server.user, private_key=Secret(server.key))
    node = registration.register(login, server.host_key.line, None)
    ssh, root = server.folder / "home" / ".ssh", server.folder / "home" / ".quarterdeck"
    for name in ("known_hosts", "config", "authorized_keys"):
        with (ssh / name).open("a") as file:
            file.write(f"# theirs: {name}\n{BLOCK}# and more\n")
    for name in ("quarterdeck_lab", "quarterdeck_lab.pub", "id_ed25519"):
        (ssh / name).write_text("key\n")
    for name in ("env/bin/python", "models/tiny/config.json", "cache/x", ".odd", "ray/token"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return node


def advance(run: Run, until: float = 60) -> None:
    """The run to its end, with a watch that follows its jobs."""
    watching = Watch()
    deadline = time.monotonic() + until
    while Run.objects.get(pk=run.pk).state in ("waiting", "running"):
        assert time.monotonic() < deadline, list(run.steps.values_list("kind", "state", "reason"))
        watching.turn()
        runs.advance(run.pk)
        time.sleep(0.05)
    for watcher in watching.watchers.values():
        watcher.stop()
        watcher.join(10)
    connection.close()


def left_job(node: Node) -> int:
    """A program of ours that still runs although nobody follows it; its pid."""
    job = Job.objects.create(node=node, name="server", state=JobState.LOST)
    remote_job.start(hosts.shared_host(node), logs.place(job), script("echo $$ > $QD_JOB/its-pid; exec sleep 300"))
    file, deadline = Path(logs.place(job)) / "its-pid", time.monotonic() + 10
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(file.read_text())


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize("models", [False, True])
def test_what_is_ours_is_gone_and_all_else_is_as_it_was(server: Sshd, node: Node, models: bool) -> None:
    home = server.folder / "home"
    pid = left_job(node)
    run = removal.remove(node, None, models=models)
    assert node.fresh().state == NodeState.REMOVING
    advance(run)
    assert not Node.objects.exists()
    assert Run.objects.get(pk=run.pk).state == "done"
    assert not is_there(pid)
    for name in ("known_hosts", "config"):
        assert (home / ".ssh" / name).read_text() == f"# theirs: {name}\n# and more\n"
    keys = (home / ".ssh" / "authorized_keys").read_text()
    assert "quarterdeck" not in keys
    assert (server.folder / "user_key.pub").read_text() in keys
    assert sorted(path.name for path in (home / ".ssh").iterdir()) == [
        "authorized_keys", "config", "id_ed25519", "known_hosts"]
    root = home / ".quarterdeck"
    left = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) if root.exists() else None
    assert left == (None if models else ["models/tiny/config.json"])


def test_the_log_of_a_step_says_what_was_taken_away(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_delete", lambda node: None)  # the log goes with the node
    run = removal.remove(node, None, models=False)
    advance(run)
    said = {job.step.kind: logs.tail(job) for job in Job.objects.filter(step__run=run)}
    assert "authorized_keys: block lab removed" in said["remove-trust"]
    assert "/.quarterdeck/models: kept" in said["remove-files"]
    assert "/.quarterdeck/env: " in said["remove-files"]
    assert [step.kind for step in run.steps.all()] == [
        "facts", "remove-hosts", "remove-trust", "remove-files", "remove-key"]


def test_a_worker_killed_after_the_key_was_taken_away_ends_well(
    node: Node, server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = removal.remove(node, None, models=False)
    run.steps.exclude(kind="remove-key").update(state="done")
    access.remove_key(hosts.shared_host(node))
    hosts.close_all()
    with pytest.raises(SignInRefused):
        hosts.open_host(node)
    runs.advance(run.pk)
    assert not Node.objects.exists()


def test_a_server_that_does_not_answer_fails_the_run_and_can_be_forgotten(
    node: Node, server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "PATIENCE", runs.PATIENCE * 0)
    run = removal.remove(node, None, models=False)
    server.stop()
    hosts.close_all()
    deadline = time.monotonic() + 20
    while run.fresh().state != "failed":
        assert time.monotonic() < deadline
        runs.advance(run.pk)
        time.sleep(0.05)
    assert node.fresh().state == NodeState.FAILED
    assert "cannot be reached" in node.fresh().reason
    removal.forget(node.fresh(), None)
    assert not Node.objects.exists()


def test_a_node_in_use_is_not_removed(node: Node) -> None:
    inner = Node.objects.create(name="inner", address="10.0.0.2", user="root", host_key="x y", jump=node)
    for act in (lambda: removal.remove(node, None, models=False), lambda: removal.forget(node, None)):
        with pytest.raises(Problem, match="inner are reached through te1"):
            act()
    inner.delete()
    other = Node.objects.create(name="te2", address="10.0.0.3", user="root", host_key="x y")
    cluster = Cluster.objects.create(name="both", head=node)
    Node.objects.filter(pk__in=[node.pk, other.pk]).update(cluster=cluster)
    with pytest.raises(Problem, match="head of the cluster both"):
        removal.remove(node.fresh(), None, models=False)
    with pytest.raises(Problem, match="in the cluster both already"):
        removal.remove(other.fresh(), None, models=False)
    assert node.fresh().state == NodeState.NEW


def test_a_node_that_is_gone_with_its_ray_can_be_forgotten(node: Node, server: Sshd) -> None:
    Node.objects.filter(pk=node.pk).update(
        ray=Job.objects.create(node=node, name="ray", service=True, state=JobState.RUNNING))
    with pytest.raises(Problem, match="Ray runs on te1"):
        removal.forget(node.fresh(), None)
    server.stop()
    hosts.close_all()
    node.move(NodeState.UNREACHABLE)
    removal.forget(node.fresh(), None)
    assert not Node.objects.exists()


# --- others that know it ---


def knowing(name: str, of: str, **fields: object) -> Node:
    blocks = {"hosts": {"lab": f"10.0.0.9 {of}\n"}}
    return Node.objects.create(
        name=name, address=f"10.0.1.{name[2:]}", host_key="x y", facts_json={"hostname": name, "blocks": blocks},
        **{"state": NodeState.READY, **fields})


def test_those_that_know_a_node_are_found_and_those_away_are_told_apart() -> None:
    gone = knowing("te9", of="te9")
    near = knowing("te2", of="te9")
    away = [knowing("te3", of="te9", state=NodeState.UNREACHABLE), knowing("te4", of="te9", offered_host_key="a b")]
    knowing("te5", of="te99")
    found = acquaintances.of(gone)
    assert (found.in_sight, found.away) == ([near], away)
    run = removal.remove(gone, None, models=False)
    assert list(run.steps.values_list("kind", "node__name"))[:3] == [
        ("facts", "te9"), ("forget-name", "te2"), ("forget-trust", "te2")]


def test_who_expects_the_old_key_is_named_when_a_new_one_is_pinned(admin_client: Client) -> None:
    knowing("te9", of="te9", offered_host_key="ssh-ed25519 BBBB")
    knowing("te2", of="te9")  # by its name only
    knowing("te3", of="te9")
    blocks = {"known_hosts": {"lab": "te9,10.0.0.9 ssh-ed25519 AAAA\n"}}
    Node.objects.filter(name="te3").update(facts_json={"hostname": "te3", "blocks": blocks})
    data = {"fingerprint": fingerprint("ssh-ed25519 BBBB")}
    said = admin_client.post(reverse("node-approve-key", args=["te9"]), data, follow=True).text
    assert "te3 still expect the old key: prepare them again, so that they sign in to te9." in said


def test_one_that_is_removed_too_is_asked_nothing() -> None:
    """Who removes many removes them one after the other."""
    gone, near = knowing("te9", of="te9"), knowing("te2", of="te9")
    run = removal.remove(gone, None, models=False)
    removal.remove(near, None, models=False)
    run.steps.filter(kind="facts").update(state="done")
    runs.advance(run.pk)
    assert set(run.steps.filter(node=near).values_list("state", "reason")) == {
        ("skipped", "it is being removed itself")}


def test_pages_tell_who_forgets_it_and_what_to_do_when_a_removal_failed(admin_client: Client) -> None:
    gone = knowing("te9", of="te9")
    knowing("te2", of="te9")
    knowing("te3", of="te9", state=NodeState.UNREACHABLE)
    page = admin_client.get(gone.get_absolute_url()).text
    assert "Its name and host key are taken out of te2 too." in page
    assert "te3 cannot be reached now: prepare them again later" in page
    run = removal.remove(gone, None, models=False)
    runs.cancel(run, "te9 cannot be reached")
    gone.fresh().move(NodeState.FAILED, "te9 cannot be reached")
    page = admin_client.get(gone.get_absolute_url()).text
    assert "then remove the node again" in page
    assert "then press Prepare again" not in page
    gone.fresh().move(NodeState.PREPARING)
    Run.objects.create(story="prepare", about=gone.subject, state="failed")
    gone.fresh().move(NodeState.FAILED, "no compiler")
    assert "then press Prepare again" in admin_client.get(gone.get_absolute_url()).text


# --- recipes ---


def test_where_nothing_of_ours_is_nothing_is_done() -> None:
    facts, site = Facts(), Site(root="/nowhere")
    assert isinstance(recipes.hosts_file(facts, site), Satisfied)
    assert isinstance(recipes.cluster_trust(facts, site), Satisfied)


def test_the_blocks_of_etc_hosts_are_found_by_their_names() -> None:
    command = recipes.hosts_file(Facts(blocks={"hosts": {"lab": "10.0.0.1 te1\n"}}), Site(root="/nowhere"))
    assert isinstance(command, Command)
    assert b'"name": "lab", "body": ""' in command.files["edits.json"]


def test_a_link_to_a_model_or_an_environment_elsewhere_is_taken_away_and_not_what_it_leads_to(tmp_path: Path) -> None:
    root, elsewhere, job = tmp_path / "root", tmp_path / "elsewhere", tmp_path / "root/jobs/1"
    (elsewhere / "bin").mkdir(parents=True)
    job.mkdir(parents=True)
    (root / "env").symlink_to(elsewhere)
    command = recipes.own_files(Facts(), Site(root=str(root)), models=True)
    (job / "signal_job.py").write_bytes(command.files["signal_job.py"])
    assert os.system(f"QD_JOB='{job}' {command.sh()} > /dev/null") == 0  # noqa: S605 - what a job does
    assert (elsewhere / "bin").exists()
    assert [path.name for path in root.iterdir()] == ["jobs"]
