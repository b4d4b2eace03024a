"""A real OpenSSH server on loopback, without root if need be, for one test session."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from controlplane.secrets import Secret
from nodes.remote.ssh import HostKey, SshLogin


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def keygen(path: Path, kind: str = "ed25519", passphrase: str = "") -> str:
    """Make a key pair with OpenSSH's own ssh-keygen; returns the private half's text."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)], check=True)
    return path.read_text()


@dataclass
class Sshd:
    """One server: sign in as the current user with ``key``; ``authorized_keys`` is its own file."""

    folder: Path
    port: int
    key: str
    process: subprocess.Popen[bytes]
    address: str = "127.0.0.1"

    @property
    def user(self) -> str:
        return getpass.getuser()

    @property
    def authorized_keys(self) -> Path:
        return self.folder / "home" / ".ssh" / "authorized_keys"

    @property
    def host_key(self) -> HostKey:
        return HostKey(" ".join((self.folder / "host_key.pub").read_text().split()[:2]))

    def login(self, **changes: object) -> SshLogin:
        fields: dict[str, object] = {"name": "lab", "address": self.address, "port": self.port, "user": self.user,
                                     "private_key": Secret(self.key)}
        return SshLogin(**{**fields, **changes})  # type: ignore[arg-type]

    def stop(self) -> None:
        """End the server and every connection to it, as a host that goes down does."""
        sessions = _children(self.process.pid)
        self.process.terminate()
        self.process.wait(10)
        for pid in sessions:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """The connections stay, and nothing is said on them, as on a line that is cut."""
        sessions = _descendants(self.process.pid)
        for pid in sessions:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in sessions:
                os.kill(pid, signal.SIGCONT)

    def restart(self, new_host_key: bool = False) -> None:
        self.stop()
        if new_host_key:
            (self.folder / "host_key").unlink()
            (self.folder / "host_key.pub").unlink()
            keygen(self.folder / "host_key")
        self.process = _run(self.folder, self.port, self.address)


def _keep_pip_configuration(home: Path) -> None:
    """Where this machine's user gets packages from, the server's user does too."""
    for name in (".config/pip", ".pip"):
        if (Path.home() / name).exists():
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).symlink_to(Path.home() / name)


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found


def _descendants(parent: int) -> list[int]:
    return [pid for child in _children(parent) for pid in (child, *_descendants(child))]


def start(folder: Path, address: str = "127.0.0.1", settings: str = "") -> Sshd:
    """A server whose users' home is ``folder/home``: HOME and authorized_keys lie there, not in the real home.

    ``settings``: lines of sshd_config that go before the others, and so win.
    """
    (folder / "home" / ".ssh").mkdir(parents=True, mode=0o700)
    _keep_pip_configuration(folder / "home")
    keygen(folder / "host_key")
    key = keygen(folder / "user_key")
    (folder / "home" / ".ssh" / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    port = free_port()
    pip_settings = " ".join(f"{name}={value}" for name, value in os.environ.items() if name.startswith("PIP_"))
    (folder / "sshd_config").write_text(
        f"""{settings}
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/home/.ssh/authorized_keys
SetEnv HOME={folder}/home {pip_settings}
StrictModes no
PermitRootLogin yes
PasswordAuthentication yes
UsePAM no
MaxStartups 200
MaxSessions 100
Subsystem sftp internal-sftp
"""
    )
    return Sshd(folder, port, key, _run(folder, port, address), address)


def _run(folder: Path, port: int, address: str) -> subprocess.Popen[bytes]:
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert program, "sshd is not installed"
    if Path("/run").stat().st_uid == 0 and getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)  # Debian's sshd wants its privilege separation directory
    process = subprocess.Popen([program, "-D", "-E", str(folder / "sshd.log"), "-f", str(folder / "sshd_config")])
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection((address, port), 0.2).close()
            return process
        except OSError:
            assert process.poll() is None, (folder / "sshd.log").read_text()
            time.sleep(0.02)
    raise AssertionError("sshd did not start to listen")
