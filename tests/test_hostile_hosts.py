"""Hosts that hang, talk without end or break off, at any point of a connection: a clear sentence, in bounded time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from controlplane.secrets import Secret
from nodes.remote import ssh, ssh_channel
from nodes.remote.command import command, script
from nodes.remote.errors import SignInRefused, TimedOut, Unreachable
from tests.support import sshd as sshd_support
from tests.support.deck import until
from tests.support.sshd import Sshd, keygen


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(ssh, "ANSWER_SECONDS", 1)


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where each connection is answered by ``answer``; it ends with the connections."""
    open_lines: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                line = listener.accept()[0]
                open_lines.append(line)
                threading.Thread(target=guarded, args=[line], daemon=True).start()

    def guarded(line: socket.socket) -> None:
        with suppress(OSError, EOFError, paramiko.SSHException):
            answer(line)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        for line in open_lines:
            line.close()


def _say_nothing(line: socket.socket) -> None:
    line.recv(1 << 16)
    line.recv(1)


def _trickle(line: socket.socket) -> None:
    while True:
        line.sendall(b"x")
        time.sleep(0.05)


def _break_off(line: socket.socket) -> None:
    line.shutdown(socket.SHUT_RDWR)


def _only_a_greeting(line: socket.socket) -> None:
    line.sendall(b"SSH-2.0-hangs\r\n")
    line.recv(1)
    time.sleep(30)


def _flood(line: socket.socket) -> None:
    while True:
        line.sendall(b"y" * 65536)


@pytest.mark.parametrize(("answer", "sentence"), [
    (_say_nothing, "it takes the connection and then says nothing for 1 s"),
    (_trickle, "no answer within 1 s"),
    (_break_off, "it takes the connection and closes it at once"),
    (_only_a_greeting, "no answer within 1 s"),
    (_flood, "no answer within 1 s"),
])
def test_a_host_that_never_becomes_an_ssh_server_is_given_up_with_its_reason(
    answer: Callable[[socket.socket], None], sentence: str
) -> None:
    began = time.monotonic()
    with answering(answer) as port, pytest.raises(Unreachable, match=sentence):
        ssh.offered_key("127.0.0.1", port, "te1")
    assert time.monotonic() - began < 6


class _Deaf(paramiko.ServerInterface):
    """Lets anybody in, opens channels, and never says whether it will run anything."""

    def __init__(self, lets_in: bool, over: threading.Event) -> None:
        self.lets_in, self.over = lets_in, over

    def check_auth_password(self, username: str, password: str) -> int:
        if not self.lets_in:
            self.over.wait(20)
        return AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.over.wait(20)
        return False


@contextmanager
def deaf(tmp_path: Path, lets_in: bool = True) -> Iterator[tuple[int, ssh.HostKey]]:
    keygen(tmp_path / "host", "ecdsa")
    key = paramiko.ECDSAKey.from_private_key_file(str(tmp_path / "host"))
    over = threading.Event()

    def serve(line: socket.socket) -> None:
        transport = paramiko.Transport(line)
        transport.add_server_key(key)
        transport.start_server(server=_Deaf(lets_in, over))
        over.wait(20)
        transport.close()

    with answering(serve) as port:
        yield port, ssh.HostKey(f"{key.get_name()} {key.get_base64()}")
        over.set()


def _login(port: int) -> ssh.SshLogin:
    return ssh.SshLogin("te1", "127.0.0.1", port, "root", password=Secret("x"))


def test_a_host_that_never_answers_a_request_to_run_something_holds_nobody(tmp_path: Path) -> None:
    with deaf(tmp_path) as (port, key), ssh.connect(_login(port), key) as host:
        began = time.monotonic()
        with pytest.raises(TimedOut, match="did not answer within 1 s"):
            host.run(command("true"), timeout=60)
        with pytest.raises(TimedOut, match="did not answer within 1 s"):
            host.open(command("true"))
        assert time.monotonic() - began < 6


def test_a_host_that_never_decides_on_a_password_is_not_called_a_refusal(tmp_path: Path) -> None:
    with deaf(tmp_path, lets_in=False) as (port, key), pytest.raises(TimedOut, match="did not answer within 1 s"):
        ssh.connect(_login(port), key)


# --- against a real OpenSSH ---


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    running = sshd_support.start(tmp_path)
    yield running
    running.stop()


FIFTY_MB = "head -c 50000000 /dev/zero"


@pytest.mark.sshd
def test_fifty_megabytes_on_stderr_are_read_and_dropped(server: Sshd) -> None:
    with ssh.connect(server.login(), server.host_key) as host:
        result = host.run(script(f"{FIFTY_MB} >&2; echo done"), timeout=60)
        assert (result.text, len(result.stderr)) == ("done\n", 4 * 1024 * 1024)
        channel = host.open(script(f"{FIFTY_MB} >&2; echo done"))
        assert channel.read(100) == b"done\n"
        channel.close()


@pytest.mark.sshd
def test_a_shell_that_prints_fifty_megabytes_to_stderr_first_is_still_heard(server: Sshd) -> None:
    (server.folder / "home" / ".bashrc").write_text(f"{FIFTY_MB} >&2\n")
    with ssh.connect(server.login(), server.host_key) as host:
        assert host.run(script("echo here"), timeout=60).text == "here\n"
        channel = host.open(script("echo here"))
        assert channel.read(100) == b"here\n"
        channel.close()


@pytest.mark.sshd
def test_a_shell_that_prints_without_end_before_it_runs_anything_is_named(server: Sshd) -> None:
    (server.folder / "home" / ".bashrc").write_text(f"{FIFTY_MB}\n")
    with ssh.connect(server.login(), server.host_key) as host:
        with pytest.raises(Unreachable, match="its shell prints without end before it runs anything"):
            host.run(script("echo here"), timeout=60)
        with pytest.raises(Unreachable, match="its shell prints without end before it runs anything"):
            host.open(script("echo here")).read(1 << 18)


@pytest.mark.sshd
def test_a_channel_that_brings_nothing_is_given_up(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_channel, "SILENCE_SECONDS", 1)
    with ssh.connect(server.login(), server.host_key) as host:
        channel = host.open(command("sleep", "60"))
        with pytest.raises(TimedOut, match="did not answer within 1 s"):
            channel.read(100)
        channel.close()


@pytest.mark.sshd
def test_a_line_that_breaks_while_a_command_runs_is_no_failure_of_the_command(tmp_path: Path) -> None:
    server = sshd_support.start(tmp_path)
    begun = tmp_path / "begun"

    def break_off() -> None:
        until(begun.exists, 10, "the command runs")
        server.stop()

    with ssh.connect(server.login(), server.host_key) as host:
        assert host.run(script("kill -9 $$")).status < 0, "and one that a signal ended is"
        threading.Thread(target=break_off).start()
        with pytest.raises(Unreachable, match="the connection was closed"):
            host.run(script('touch "$1"; sleep 10', str(begun)))


def test_a_login_banner_is_no_part_of_any_answer(tmp_path: Path) -> None:
    banner = tmp_path / "banner"
    banner.write_text("Authorised use only.\nAll is recorded.\n" * 200)
    running = sshd_support.start(tmp_path / "server", settings=f"Banner {banner}")
    with ssh.connect(running.login(), running.host_key) as host:
        assert host.run(script("echo here")).text == "here\n"
    running.stop()


@pytest.mark.sshd
def test_a_way_of_signing_in_that_is_not_allowed_is_told_with_those_that_are(tmp_path: Path) -> None:
    running = sshd_support.start(tmp_path, settings="PasswordAuthentication no\nKbdInteractiveAuthentication no")
    with pytest.raises(SignInRefused, match=r"refused the sign-in .* It allows only: publickey\."):
        ssh.connect(running.login(private_key=Secret(""), password=Secret("x")), running.host_key)
    running.stop()
