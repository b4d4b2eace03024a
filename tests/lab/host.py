"""One host of a lab, whatever it is made of: how to sign in to it, and what can be done to it."""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from controlplane.secrets import Secret
from nodes.remote.ssh import HostKey, SshLogin

#: Of every account on every host: nobody but this machine can reach them.
PASSWORD = "quarterdeck"


def until(true: Callable[[], object], seconds: float, what: str, pause: float = 0.05) -> None:
    """Wait for a condition, looked at every ``pause`` s. AssertionError naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(pause)


@dataclass
class Host(ABC):
    """A server with OpenSSH. Sign in as ``user`` with ``key`` (a private key's text) or ``password``."""

    name: str
    address: str
    port: int
    user: str
    key: str
    password: str
    folder: Path  # its files on this machine

    @property
    @abstractmethod
    def host_key(self) -> HostKey:
        """What its sshd shows."""

    @abstractmethod
    def command(self, *words: str) -> list[str]:
        """The command line on this machine that runs ``words`` on the host, past SSH and the network."""

    @abstractmethod
    def path(self, inside: str) -> Path:
        """Where a file of the host, named by its absolute path there, lies on this machine."""

    @abstractmethod
    def cut(self) -> None:
        """Nothing goes to it or comes from it any more; what runs on it runs on."""

    @abstractmethod
    def restore(self) -> None:
        """Undo `cut` and `slow`."""

    @abstractmethod
    def slow(self, rate: str) -> None:
        """Let through so much in each direction, as tc writes it: "10mbit"."""

    @abstractmethod
    def kill(self) -> None:
        """Pull its plug: every process on it is gone, its disk stays."""

    @abstractmethod
    def boot(self) -> None:
        """Switch it on, with the disk it had."""

    @abstractmethod
    def fill_disk(self, leave: int = 0) -> None:
        """Leave so many bytes free on the disk that HOME and /tmp lie on."""

    @abstractmethod
    def empty_disk(self) -> None:
        """Undo `fill_disk`."""

    @abstractmethod
    def gpus(self, captured: str, used: Sequence[int] = ()) -> None:
        """Give it replaying-nvidia-smi with what was captured of "a10", "h100x1" or "h200x4", as nvidia-smi.

        ``used`` is the MiB in use of each GPU. Called again, it changes what a running one says.
        """

    def login(self, **changes: object) -> SshLogin:
        fields: dict[str, object] = {"name": self.name, "address": self.address, "port": self.port, "user": self.user,
                                     "private_key": Secret(self.key)}
        return SshLogin(**{**fields, **changes})  # type: ignore[arg-type]

    def run(self, *words: str, timeout: float = 60) -> str:
        """What a command prints there. CalledProcessError where it fails. One word is a shell's line."""
        line = ("sh", "-c", words[0]) if len(words) == 1 else words
        done = subprocess.run(self.command(*line), capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            done.stderr and print(f"{self.name}: {done.stderr}")
            done.check_returncode()
        return done.stdout

    def read(self, inside: str) -> bytes:
        return self.path(inside).read_bytes()

    def write(self, inside: str, content: bytes | str, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
