"""Registering a server against a real OpenSSH: nothing is kept before all of it worked, our own key takes over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection

from controlplane import streams
from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes import access, hosts, logs, registration, removal, runs
from nodes.candidates import SignIn
from nodes.models import Identity, Job, Node, Run
from nodes.recipes import Site
from nodes.recipes import removal as recipes
from nodes.registration import Login
from nodes.remote import job as remote_job
from nodes.remote import ssh
from nodes.remote.command import script
from nodes.remote.errors import HostKeyChanged, SignInRefused, Unreachable
from nodes.states import JobState, NodeState, RunState
from nodes.telemetry import store
from nodes.telemetry.filing import Filing
from nodes.watch import Watch, Watcher
from tests.support import sshd as sshd_support
from tests.support.sshd import Sshd, keygen

pytestmark = [pytest.mark.sshd, pytest.mark.valkey, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    running = sshd_support.start(tmp_path)
    yield running
    hosts.close_all()
    running.stop()


def login(server: Sshd, **changes: object) -> Login:
    fields: dict[str, object] = {"name": "te1", "address": server.address, "port": server.port, "user": server.user,
                                 "private_key": Secret(server.key)}
    return Login(**{**fields, **changes})  # type: ignore[arg-type]


def register(server: Sshd) -> Node:
    return registration.register(login(server), server.host_key.line, None)


def test_the_offered_key_is_the_servers_and_nothing_is_kept_yet(server: Sshd) -> None:
    assert registration.offered_key(login(server)) == server.host_key
    assert not Node.objects.exists()


def test_our_own_key_takes_over_and_the_typed_one_is_forgotten(server: Sshd) -> None:
    node = register(server)
    (ours,) = [line for line in server.authorized_keys.read_text().splitlines() if line.endswith(" quarterdeck")]
    server.authorized_keys.write_text(f"{ours}\n")
    with hosts.open_host(node) as host:
        assert host.run(script("echo signed in")).text == "signed in\n"
    stored = " ".join(str(value) for value in Node.objects.values_list().get()) + Identity.objects.get().public_key
    assert server.key.splitlines()[2] not in stored


def test_the_facts_of_a_registered_node_are_gathered(server: Sshd) -> None:
    node = register(server)
    node.refresh_from_db()
    assert node.state == NodeState.NEW
    assert node.facts.cpus > 0
    assert node.facts.home == str(server.folder / "home")
    assert node.root_dir == f"{server.folder}/home/.quarterdeck"


def node_run(node: Node) -> int:
    return Run.objects.get(about=node.subject, state__in=[RunState.WAITING, RunState.RUNNING]).pk


def test_registering_twice_adds_our_key_once(server: Sshd) -> None:
    node = register(server)
    node.delete()
    register(server)
    lines = server.authorized_keys.read_text().splitlines()
    assert len([line for line in lines if line.endswith(" quarterdeck")]) == 1


def test_a_key_file_without_a_last_line_end_is_not_broken(server: Sshd) -> None:
    server.authorized_keys.write_text(server.authorized_keys.read_text().rstrip("\n"))
    register(server)
    first, second = server.authorized_keys.read_text().splitlines()
    assert first.startswith("ssh-ed25519")
    assert second.endswith(" quarterdeck")


def test_a_wrong_password_changes_nothing(server: Sshd) -> None:
    before = server.authorized_keys.read_text()
    with pytest.raises(SignInRefused, match="refused the sign-in"):
        registration.register(
            login(server, private_key=Secret(""), password=Secret("wrong")), server.host_key.line, None)
    assert not Node.objects.exists()
    assert server.authorized_keys.read_text() == before


def test_a_server_that_changed_between_showing_and_approving_is_not_registered(server: Sshd, tmp_path: Path) -> None:
    keygen(tmp_path / "shown")
    shown = " ".join((tmp_path / "shown.pub").read_text().split()[:2])
    with pytest.raises(HostKeyChanged):
        registration.register(login(server), shown, None)
    assert not Node.objects.exists()


def test_an_unreachable_address_changes_nothing() -> None:
    nobody = Login("te9", "127.0.0.1", sshd_support.free_port(), "root", Secret("x"))
    with pytest.raises(Unreachable, match=r"te9 \(127.0.0.1:\d+\) cannot be reached: nothing listens on this port"):
        registration.offered_key(nobody)
    assert not Node.objects.exists()


def test_a_name_or_login_that_is_taken_is_refused_before_anything_else(server: Sshd) -> None:
    register(server)
    with pytest.raises(Problem, match="A node named te1 exists already"):
        registration.offered_key(login(server))
    with pytest.raises(Problem, match="registered already, as te1"):
        registration.offered_key(login(server, name="te2"))


@pytest.mark.parametrize("address", ["a b", "-oProxyCommand=x", "", "1.2.3.300", "host;id", "x\ny", "a" * 300])
def test_an_address_that_cannot_be_one_is_named(address: str) -> None:
    with pytest.raises(Problem, match=r"neither a host name nor an IP address|300 is not a number"):
        Login("te1", address, 22, "root")


@pytest.mark.parametrize("name", ["", "a b", "-x", "x-", "../x", "名", "a" * 64])
def test_a_name_that_cannot_be_one_is_named(name: str) -> None:
    with pytest.raises(Problem, match="cannot be a node's name"):
        Login(name, "127.0.0.1", 22, "root")


def test_a_sealed_sign_in_hides_its_secrets_and_comes_back_whole(server: Sshd) -> None:
    sealed = SignIn(private_key=Secret(server.key), passphrase=Secret("open sesame"), agent=True).seal()
    assert "open sesame" not in sealed
    back = SignIn.unseal(sealed)
    assert back.private_key.reveal() == server.key
    assert back.passphrase.reveal() == "open sesame"
    assert back.agent is True
    assert "open sesame" not in repr(back)


def test_a_changed_host_key_stops_the_node_until_it_is_approved(server: Sshd) -> None:
    node = register(server)
    old = node.host_key
    server.restart(new_host_key=True)
    hosts.close_all()
    with pytest.raises(HostKeyChanged, match="another host key"):
        hosts.open_host(node)
    node.refresh_from_db()
    assert (node.host_key, node.offered_host_key) == (old, server.host_key.line)
    registration.approve_new_key(node, None)
    runs.advance(node_run(node))
    node.refresh_from_db()
    assert (node.host_key, node.offered_host_key) == (server.host_key.line, "")
    assert node.state == NodeState.NEW


def test_watch_says_that_a_node_is_gone_and_that_it_is_back(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.watch.GLITCH_SECONDS", 1)
    node = register(server)
    server.stop()
    watcher = Watcher(node, Filing())
    watcher.start()
    wait_for_state(node, NodeState.UNREACHABLE)
    assert "nothing listens on this port" in node.fresh().reason
    server.restart()
    wait_for_state(node, NodeState.NEW)
    watcher.stop()
    watcher.join(10)


def test_a_log_arrives_although_watch_was_there_before_the_facts(server: Sshd) -> None:
    node = register(server)
    watching = Watch()
    watching.turn()
    deadline = time.monotonic() + 20
    while not store.newest_of_nodes([node.pk]):
        assert time.monotonic() < deadline
        watching.filing.flush()
        time.sleep(0.05)
    job = Job.objects.create(node=node.fresh(), name="talk", state=JobState.RUNNING)
    remote_job.start(hosts.shared_host(node), logs.place(job), script("echo here"))
    while streams.end(streams.log_key(job.pk)) != len("here\n"):
        assert time.monotonic() < deadline
        watching.turn()
        time.sleep(0.05)
    for watcher in watching.watchers.values():
        watcher.stop()
        watcher.join(10)


def wait_for_state(node: Node, state: NodeState) -> None:
    deadline = time.monotonic() + 40
    while node.fresh().state != state:
        assert time.monotonic() < deadline, node.fresh().state
        time.sleep(0.05)
        connection.close()


def test_a_removed_node_has_our_key_no_longer(server: Sshd) -> None:
    node = register(server)
    before = server.authorized_keys.read_text()
    removal.forget(node, None)
    assert not Node.objects.exists()
    after = server.authorized_keys.read_text()
    assert "quarterdeck" in before
    assert "quarterdeck" not in after
    assert after.strip()


def test_keys_with_a_comment_in_another_encoding_are_still_there_afterwards(server: Sshd) -> None:
    """In a UTF-8 locale grep leaves out what is none; on servers a login may have such a locale."""
    (server.folder / "home" / ".bashrc").write_text("export LC_ALL=C.UTF-8\n")
    theirs = server.authorized_keys.read_bytes() + b"ssh-ed25519 AAAA jos\xe9@laptop\nssh-ed25519 BBBB ann\n"
    server.authorized_keys.write_bytes(theirs)
    node = register(server)
    assert server.authorized_keys.read_bytes().startswith(theirs)
    line, site = access.own_line(), Site(root=node.root_dir)
    for command in (recipes.own_key(site, line), script(access._REMOVE_KEY, line)):
        with ssh.connect(server.login(), server.host_key) as host:
            access.install_key(host)
            assert host.run(command).status == 0
        assert server.authorized_keys.read_bytes() == theirs


def test_a_node_that_is_gone_can_still_be_forgotten(server: Sshd) -> None:
    node = register(server)
    server.stop()
    hosts.close_all()
    removal.forget(node, None)
    assert not Node.objects.exists()
