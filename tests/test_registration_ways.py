"""All the ways in, against real OpenSSH servers: many at once, through a jump host, with an agent's key, and root."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes import access, batches, hosts, preparation, registration, removal, runs, tasks, tunnel
from nodes.candidates import Candidate, SignIn
from nodes.hostlist import parse
from nodes.models import Bastion, Node
from nodes.registration import Login, Way
from nodes.remote import ssh
from nodes.remote.command import script
from nodes.remote.errors import HostKeyChanged, SignInRefused, Unreachable
from nodes.states import NodeState
from nodes.watch import Watch
from tests.support import sshd as sshd_support
from tests.support.sshd import Sshd

pytestmark = [pytest.mark.sshd, pytest.mark.valkey, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Sshd]]:
    """Three servers with the same user key."""
    started: list[Sshd] = []
    for number in range(3):
        started.append(sshd_support.start(tmp_path / f"server{number}"))
        started[-1].authorized_keys.write_text((tmp_path / "server0" / "user_key.pub").read_text())
    yield started
    hosts.close_all()
    for server in started:
        server.stop()


def login(server: Sshd, name: str, key: str, **changes: object) -> Login:
    fields: dict[str, object] = {"private_key": Secret(key), **changes}
    return Login(name, server.address, server.port, server.user, **fields)  # type: ignore[arg-type]


def test_many_are_registered_at_once_and_a_bad_one_delays_nobody(servers: list[Sshd]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        logins = [login(server, f"te{n}", servers[0].key) for n, server in enumerate(servers)]
        logins.insert(1, Login("dead", "127.0.0.1", silent.getsockname()[1], "root", Secret("x")))
        began = time.monotonic()
        keys = registration.offered_keys(logins)
        assert [key if isinstance(key, Problem) else key.line for key in keys if not isinstance(key, Problem)] == [
            server.host_key.line for server in servers]
        assert isinstance(keys[1], Unreachable)
        assert "takes the connection and then says nothing for 5 s" in str(keys[1])
        assert time.monotonic() - began < 10
    approved = [(each, key.line) for each, key in zip(logins, keys, strict=True) if not isinstance(key, Problem)]
    approved.insert(1, (login(servers[0], "wrong", servers[0].key), servers[1].host_key.line))
    found = registration.register_many(approved, None)
    assert isinstance(found[1], HostKeyChanged)
    nodes = [node for node in found if isinstance(node, Node)]
    assert [node.name for node in nodes] == ["te0", "te1", "te2"]
    assert all(node.fresh().facts.cpus for node in nodes)


def test_servers_that_say_nothing_hold_up_none_that_answers(
    servers: list[Sshd], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 3)
    over: list[str] = []

    def ask(one: Login) -> None:
        try:
            registration.offered_key(one)
        finally:
            over.append(one.name)

    with socket.create_server(("127.0.0.1", 0), backlog=100) as mute:
        port = int(mute.getsockname()[1])
        asked = [Login(f"mute{n}", "127.0.0.1", port, f"u{n}") for n in range(60)]
        asked += [login(server, f"te{n}", servers[0].key) for n, server in enumerate(servers)]
        said = registration.at_once(ask, asked)
    assert {*over[: len(servers)]} == {f"te{n}" for n in range(len(servers))}
    assert sum(isinstance(one, Problem) for one in said) == 60


def test_a_batch_runs_from_a_list_to_nodes(servers: list[Sshd], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "send", lambda task, *words: task(*words) if task is tasks.advance_batch else None)
    typed = "\n".join(f"te{n} = {each.user}@{each.address}:{each.port}" for n, each in enumerate(servers))
    batch = batches.begin(parse(typed + "\nte9:x"), SignIn(private_key=Secret(servers[0].key)), None, labels=["lab"])
    offered = {each.pk: ssh.HostKey(each.host_key).fingerprint for each in batch.candidates.filter(state="offered")}
    assert list(offered.values()) == [server.host_key.fingerprint for server in servers]
    assert batches.approve(batch, offered) == 3
    assert sorted(Node.objects.values_list("name", "labels")) == [(f"te{n}", ["lab"]) for n in range(3)]
    batch.refresh_from_db()
    assert batch.sign_in == "", "it is not needed more"
    (bad,) = Candidate.objects.filter(state="failed")
    assert (bad.typed, bad.reason) == ("te9:x", "A port is a number from 1 to 65535.")


# --- jump hosts ---


def test_a_node_is_reached_through_another_node(servers: list[Sshd]) -> None:
    jump = registration.register(login(servers[0], "gate", servers[0].key), servers[0].host_key.line, None)
    way = Way(jump=jump)
    inner = login(servers[1], "inner", servers[0].key)
    assert registration.offered_key(inner, way) == servers[1].host_key
    node = registration.register(inner, servers[1].host_key.line, None, way)
    hosts.close_all()
    with hosts.open_host(node) as host:
        assert host.run(script('echo "$SSH_CONNECTION"')).text.split()[3] == str(servers[1].port)
    servers[0].stop()
    hosts.close_all()
    with pytest.raises(Unreachable, match="gate"):
        hosts.open_host(node)


def test_a_jump_host_that_is_no_node_is_pinned_too(servers: list[Sshd]) -> None:
    gate = login(servers[0], "gate", servers[0].key)
    bastion = registration.register_bastion(gate, servers[0].host_key.line)
    node = registration.register(login(servers[1], "inner", servers[0].key), servers[1].host_key.line, None,
                                 Way(bastion=bastion))
    assert Node.objects.count() == 1
    hosts.shared_host(node)
    servers[0].restart(new_host_key=True)
    hosts.close_all()
    with pytest.raises(HostKeyChanged, match=r"127\.0\.0\.1"):
        hosts.open_host(node)
    node = Node.objects.get()
    assert node.offered_host_key == ""
    assert node.key_changed
    assert Bastion.objects.get().offered_host_key == servers[0].host_key.line
    registration.approve_new_bastion_key(Bastion.objects.get(), None)
    hosts.open_host(Node.objects.get()).close()


def test_the_last_node_behind_a_jump_host_takes_our_key_off_that_too(servers: list[Sshd]) -> None:
    bastion = registration.register_bastion(login(servers[0], "gate", servers[0].key), servers[0].host_key.line)
    inner = [registration.register(login(servers[n], f"inner{n}", servers[0].key), servers[n].host_key.line, None,
                                   Way(bastion=bastion)) for n in (1, 2)]
    removal.forget(inner[0], None)
    assert access.own_line() in servers[0].authorized_keys.read_text()
    removal.forget(inner[1], None)
    assert not Bastion.objects.exists()
    assert [access.own_line() in server.authorized_keys.read_text() for server in servers] == [False] * 3


# --- keys that are there already ---


def test_our_own_key_that_was_put_there_by_hand_signs_in(servers: list[Sshd]) -> None:
    servers[0].authorized_keys.write_text(access.own_line() + "\n")
    node = registration.register(
        login(servers[0], "te0", "", agent=True), servers[0].host_key.line, None)
    assert servers[0].authorized_keys.read_text() == access.own_line() + "\n"
    assert node.facts.cpus


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    place = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not place.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
    yield place
    process.terminate()
    process.wait(10)


def test_a_key_of_the_ssh_agent_signs_in(servers: list[Sshd], agent: Path) -> None:
    with pytest.raises(SignInRefused, match="Quarterdeck's own key and those of the SSH agent"):
        registration.register(login(servers[0], "te0", "", agent=True), servers[0].host_key.line, None)
    subprocess.run(["ssh-add", "-q", str(servers[0].folder / "user_key")], check=True, env=os.environ)
    registration.register(login(servers[0], "te0", "", agent=True), servers[0].host_key.line, None)
    assert access.own_line() in servers[0].authorized_keys.read_text()


# --- root ---


@pytest.fixture
def no_root_but_sudo(servers: list[Sshd], tmp_path: Path) -> Sshd:
    """The first server, where the user is said not to be root, and sudo is a stand-in that knows one password."""
    bin_ = servers[0].folder / "bin"
    bin_.mkdir()
    (bin_ / "id").write_text("#!/bin/sh\necho 1000\n")
    (bin_ / "sudo").write_text(
        "#!/bin/sh\ncase \" $* \" in *' -n '*) exit 1;; esac\n"
        "read -r typed; [ \"$typed\" = 'open sesame' ]\n")
    for program in bin_.iterdir():
        program.chmod(0o755)
    (servers[0].folder / "home" / ".bashrc").write_text(f"PATH={bin_}:$PATH\n")
    return servers[0]


def test_a_password_for_sudo_is_proven_and_kept_encrypted(no_root_but_sudo: Sshd) -> None:
    server = no_root_but_sudo
    with pytest.raises(Problem, match="does not take this password"):
        typed = login(server, "te0", server.key, root="password", sudo_password=Secret("wrong"))
        registration.register(typed, server.host_key.line, None)
    assert not Node.objects.exists()
    typed = login(server, "te0", server.key, root="password", sudo_password=Secret("open sesame"))
    registration.register(typed, server.host_key.line, None)
    node = Node.objects.get()
    assert (node.sudo, node.sudo_password.reveal()) == (Node.Sudo.PASSWORD, "open sesame")
    with connection.cursor() as cursor:
        cursor.execute("SELECT sudo_password FROM nodes_node")
        assert "open sesame" not in str(cursor.fetchall())


def test_sudo_that_asks_is_not_used_unless_somebody_gave_its_password(no_root_but_sudo: Sshd) -> None:
    server = no_root_but_sudo
    node = registration.register(login(server, "te0", server.key), server.host_key.line, None)
    assert (node.sudo, node.sudo_password) == (Node.Sudo.NONE, "")


def test_sudo_that_asks_nothing_is_found_unless_it_is_not_wanted(no_root_but_sudo: Sshd) -> None:
    server = no_root_but_sudo
    (server.folder / "bin" / "sudo").write_text("#!/bin/sh\nexit 0\n")
    with ssh.connect(server.login(), server.host_key) as host:
        assert access.root_there(host, access.AUTO, Secret("")) == Node.Sudo.PASSWORDLESS
        assert access.root_there(host, access.NO_ROOT, Secret("")) == Node.Sudo.NONE


# --- a changed key ---


def test_a_changed_key_ends_what_is_open_and_refuses_all_that_follows(servers: list[Sshd]) -> None:
    node = registration.register(login(servers[0], "te0", servers[0].key), servers[0].host_key.line, None)
    open_one = hosts.shared_host(node)
    assert isinstance(open_one, ssh.SshHost)
    Node.objects.filter(pk=node.pk).update(offered_host_key=servers[1].host_key.line)
    servers[0].stop()
    seen = node.fresh()
    with pytest.raises(Unreachable):
        hosts.shared_host(seen)
    assert not open_one.alive


def test_connections_that_nobody_uses_are_closed(servers: list[Sshd], monkeypatch: pytest.MonkeyPatch) -> None:
    node = registration.register(login(servers[0], "te0", servers[0].key), servers[0].host_key.line, None)
    host = hosts.shared_host(node)
    assert isinstance(host, ssh.SshHost)
    channel = host.open(script("sleep 60"))
    monkeypatch.setattr(hosts, "IDLE_SECONDS", 0)
    hosts.close_idle()
    assert host.alive, "somebody still talks over it"
    channel.close()
    host.used_at -= 1
    hosts.close_idle()
    assert not host.alive


def test_watch_lets_go_of_a_node_whose_key_changed(servers: list[Sshd], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "send", lambda task, *words: None)
    node = registration.register(login(servers[0], "te0", servers[0].key), servers[0].host_key.line, None)
    watching = Watch()
    watching.turn()
    until(lambda: watching.watchers[node.pk]._channel is not None, "the node is watched")
    # Its sessions live on, as after a restart of sshd; only a new connection shows the new key.
    servers[0].process.terminate()
    servers[0].process.wait(10)
    for name in ("host_key", "host_key.pub"):
        (servers[0].folder / name).unlink()
    sshd_support.keygen(servers[0].folder / "host_key")
    servers[0].process = sshd_support._run(servers[0].folder, servers[0].port, servers[0].address)
    with pytest.raises(HostKeyChanged):
        hosts.open_host(node)
    watching.turn()
    until(lambda: node.fresh().state == NodeState.UNREACHABLE, "the node is called unreachable")
    assert "shows another host key" in node.fresh().reason
    run = preparation.check(node.fresh(), None)
    runs.advance(run.pk)
    assert run.fresh().state == "failed"
    assert "shows another host key" in run.fresh().reason
    for watcher in watching.watchers.values():
        watcher.stop()
        watcher.join(10)


def test_a_tunnel_carries_nothing_more_once_the_key_changed(servers: list[Sshd]) -> None:
    node = registration.register(login(servers[0], "te0", servers[0].key), servers[0].host_key.line, None)
    with socket.create_server(("127.0.0.1", 0)) as inner:
        inner.settimeout(10)
        inner_port = inner.getsockname()[1]
        port = tunnel.local_port(node, "127.0.0.1", inner_port)
        with socket.create_connection(("127.0.0.1", port), 10) as here:
            there = inner.accept()[0]
            here.sendall(b"ping")
            assert there.recv(4) == b"ping"
            Node.objects.filter(pk=node.pk).update(offered_host_key=servers[1].host_key.line)
            assert tunnel.local_port(node.fresh(), "127.0.0.1", inner_port) == port
            here.settimeout(10)
            assert here.recv(1) == b""
            there.close()


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
        time.sleep(0.05)


def test_a_key_with_a_passphrase_is_opened_once_for_all(
    servers: list[Sshd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "send", lambda task, *words: task(*words) if task is tasks.advance_batch else None)
    key = Secret(sshd_support.keygen(tmp_path / "key", passphrase="open sesame"))
    for server in servers:
        server.authorized_keys.write_text((tmp_path / "key.pub").read_text())
    rows = parse("\n".join(f"te{n} = {each.user}@{each.address}:{each.port}" for n, each in enumerate(servers)))
    wrong = batches.begin(rows, SignIn(private_key=key, passphrase=Secret("wrong")), None)
    assert set(wrong.candidates.values_list("state", flat=True)) == {"failed"}
    assert "The passphrase does not open the private key." in wrong.candidates.all()[0].reason
    tried: list[str] = []
    monkeypatch.setattr(ssh, "read_key", _counting(ssh.read_key, tried))
    batch = batches.begin(rows, SignIn(private_key=key, passphrase=Secret("open sesame")), None)
    batches.approve(batch, {each.pk: ssh.HostKey(each.host_key).fingerprint for each in batch.candidates.all()})
    assert Node.objects.count() == 3
    assert tried.count("open sesame") == 2  # once for asking, once for registering


def _counting(read: Callable[..., Any], tried: list[str]) -> Callable[..., Any]:
    def counting(text: Secret, passphrase: Secret) -> Any:
        tried.append(passphrase.reveal())
        return read(text, passphrase)

    return counting
