"""Commands on a real OpenSSH server: signed in with pinned keys, quoted by type, drained on both outputs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.secrets import Secret
from nodes.remote import ssh, ssh_channel
from nodes.remote.command import Command, command, python, quote, script
from nodes.remote.errors import BadKey, HostKeyChanged, SignInRefused, TimedOut, Unreachable
from nodes.remote.host import Host
from nodes.remote.local import LocalHost
from tests.support import sshd as sshd_support
from tests.support.sshd import Sshd, keygen

PRINT_ARGV = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(os.fsencode(word) for word in sys.argv[1:]))"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    running = sshd_support.start(tmp_path_factory.mktemp("sshd"))
    yield running
    running.stop()


@pytest.fixture(scope="module", params=["local", pytest.param("ssh", marks=pytest.mark.sshd)])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    if request.param == "local":
        yield LocalHost()
        return
    running: Sshd = request.getfixturevalue("server")
    with ssh.connect(running.login(), running.host_key) as connected:
        yield connected


NASTY = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200)


@settings(max_examples=40, deadline=None)
@given(words=st.lists(NASTY, min_size=1, max_size=4))
def test_a_program_receives_exactly_the_words_that_were_typed(host: Host, words: list[str]) -> None:
    result = host.run(python("python3", PRINT_ARGV, *words))
    assert result.stdout.decode().split("\0") == words


@pytest.mark.parametrize(
    "word", ["'; touch /tmp/owned; '", "$(id)", "`id`", "a\nb", "-rf", "世界", "x" * 10_000, "\\", '"'])
def test_words_with_a_meaning_to_shells_stay_words(host: Host, word: str) -> None:
    assert host.run(script('printf %s "$1"', word)).text == word


@given(value=NASTY)
@settings(max_examples=25, deadline=None)
def test_an_environment_value_arrives_as_it_is(host: Host, value: str) -> None:
    assert host.run(script('printf %s "$QD_TEST"', env={"QD_TEST": value})).text == value


def test_a_nul_character_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="NUL"):
        quote("a\0b")


def test_a_secret_is_real_on_the_wire_and_masked_for_people(host: Host) -> None:
    told = command("printf", "%s", Secret("hunter2"))
    assert host.run(told).text == "hunter2"
    assert "hunter2" not in told.masked()
    assert "hunter2" not in f"{told.argv}"


def test_a_variable_name_cannot_carry_a_command() -> None:
    with pytest.raises(ValueError, match="name of an environment variable"):
        Command(("true",), env={"A;id": "1"}).sh()


def test_both_outputs_are_drained_so_that_neither_can_hang_the_other(host: Host) -> None:
    result = host.run(script("head -c 6000000 /dev/zero >&2; echo done"), timeout=60)
    assert (result.status, result.text) == (0, "done\n")
    assert len(result.stderr) == 4 * 1024 * 1024


def test_standard_input_arrives_whole(host: Host) -> None:
    assert host.run(script("wc -c"), stdin=b"x" * 3_000_000).text.strip() == "3000000"


def test_the_exit_status_is_read(host: Host) -> None:
    assert host.run(script("exit 7")).status == 7


def test_a_command_that_takes_too_long_is_given_up(host: Host) -> None:
    with pytest.raises(TimedOut, match="within 1 s"):
        host.run(command("sleep", "30"), timeout=1)


@pytest.mark.sshd
def test_a_wrong_password_is_refused_with_a_sentence(server: Sshd) -> None:
    with pytest.raises(SignInRefused, match=r"refused the sign-in of .* with the password"):
        ssh.connect(server.login(private_key=Secret(""), password=Secret("wrong")), server.host_key)


@pytest.mark.sshd
def test_a_key_that_is_not_known_there_is_refused(server: Sshd, tmp_path: Path) -> None:
    with pytest.raises(SignInRefused, match="with the private key"):
        ssh.connect(server.login(private_key=Secret(keygen(tmp_path / "other"))), server.host_key)


@pytest.mark.sshd
def test_a_changed_host_key_stops_before_the_sign_in(server: Sshd, tmp_path: Path) -> None:
    keygen(tmp_path / "pinned")
    pinned = ssh.HostKey(" ".join((tmp_path / "pinned.pub").read_text().split()[:2]))
    before = (server.folder / "sshd.log").read_text()
    with pytest.raises(HostKeyChanged) as caught:
        ssh.connect(server.login(), pinned)
    assert caught.value.offered == server.host_key.line
    assert "Accepted" not in (server.folder / "sshd.log").read_text()[len(before) :]


@pytest.mark.sshd
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_protected_key_of_each_type_signs_in_with_its_passphrase(server: Sshd, tmp_path: Path, kind: str) -> None:
    text = Secret(keygen(tmp_path / "k", kind, "open sesame"))
    with server.authorized_keys.open("a") as file:
        file.write((tmp_path / "k.pub").read_text())
    ssh.connect(server.login(private_key=text, passphrase=Secret("open sesame")), server.host_key).close()
    ssh.connect(server.login(private_key=ssh.opened(text, Secret("open sesame"))), server.host_key).close()
    with pytest.raises(BadKey, match="passphrase does not open"):
        ssh.connect(server.login(private_key=text, passphrase=Secret("wrong")), server.host_key)
    with pytest.raises(BadKey, match="protected by a passphrase"):
        ssh.connect(server.login(private_key=text), server.host_key)


def test_text_that_is_no_key_is_named_as_such() -> None:
    with pytest.raises(BadKey, match="not a private key"):
        ssh.read_key(Secret("hello"), Secret(""))


@pytest.mark.sshd
def test_the_fingerprint_is_the_one_ssh_keygen_shows(server: Sshd) -> None:
    import subprocess

    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(server.folder / "host_key.pub")], capture_output=True, text=True, check=True).stdout
    assert ssh.offered_key(server.address, server.port).fingerprint in shown.split()


def test_an_address_where_nobody_listens_is_named() -> None:
    with pytest.raises(Unreachable, match="nothing listens"):
        ssh.offered_key("127.0.0.1", sshd_support.free_port())


def test_a_name_nobody_knows_is_named() -> None:
    with pytest.raises(Unreachable, match="name is not known"):
        ssh.offered_key("no-such-host.invalid", 22)


def _answer_as_a_web_server(listener: socket.socket) -> None:
    with listener.accept()[0] as client:
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200)


def test_a_server_that_is_not_ssh_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = threading.Thread(target=_answer_as_a_web_server, args=[listener])
        answer.start()
        with pytest.raises(Unreachable, match="not an SSH server"):
            ssh.offered_key("127.0.0.1", listener.getsockname()[1])
        answer.join(5)


def test_a_host_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(Unreachable):
        ssh.offered_key("127.0.0.1", listener.getsockname()[1])


@pytest.mark.sshd
def test_what_a_login_shell_prints_is_not_taken_for_the_answer(tmp_path: Path) -> None:
    running = sshd_support.start(tmp_path)
    (tmp_path / "home" / ".bashrc").write_text("echo Welcome to te1\nprintf 'no line end'\n")
    with ssh.connect(running.login(), running.host_key) as connected:
        assert connected.run(script("printf out")).stdout == b"out"
        channel = connected.open(script("printf first; cat"))
        assert channel.read(100) == b"first"
        channel.write(b"second")
        assert channel.read(100) == b"second"
        channel.close()
    running.stop()


@pytest.mark.sshd
def test_a_command_that_does_not_read_its_input_is_told_by_its_status(server: Sshd) -> None:
    with ssh.connect(server.login(), server.host_key) as connected:
        for _ in range(5):
            assert connected.run(script("exit 9"), stdin=b"x" * 4_000_000).status == 9


class _LastWordsLate:
    """A paramiko channel whose last bytes, end and status all come just after its outputs were looked at."""

    closed = False

    def __init__(self) -> None:
        self.left, self.here, self.eof_received = b"the last words", False, False
        self.status_event = threading.Event()

    def get_transport(self) -> _LastWordsLate:
        return self

    def is_active(self) -> bool:
        return True

    def settimeout(self, seconds: float) -> None: ...

    def shutdown_write(self) -> None: ...

    def recv_ready(self) -> bool:
        ready, self.here, self.eof_received = self.here and bool(self.left), True, True
        return ready

    def recv(self, size: int) -> bytes:
        said, self.left = self.left, b""
        return said

    def recv_stderr_ready(self) -> bool:
        return False

    def exit_status_ready(self) -> bool:
        return self.here

    def recv_exit_status(self) -> int:
        return 0


def test_what_comes_between_two_looks_is_not_lost() -> None:
    result = ssh_channel.converse(_LastWordsLate(), "te1", b"", 5)  # type: ignore[arg-type]
    assert (result.status, result.stdout) == (0, b"the last words")
