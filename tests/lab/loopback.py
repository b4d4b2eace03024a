"""Hosts without root: an sshd each, on 127.0.0.11 and on. They share this machine's files, name and processes.

They can be registered, and killed and booted; what needs a network or a disk of its own raises `NotHere`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nodes.remote.ssh import HostKey
from tests.lab.host import Host
from tests.support import sshd
from tests.support.sshd import Sshd


class NotHere(RuntimeError):
    """This needs root, iproute2 and overlay file systems."""


@dataclass
class LoopbackHost(Host):
    server: Sshd

    @property
    def host_key(self) -> HostKey:
        return self.server.host_key

    def command(self, *words: str) -> list[str]:
        return ["env", f"HOME={self.folder / 'home'}", *words]

    def path(self, inside: str) -> Path:
        return Path(inside)

    def cut(self) -> None:
        """Every connection is broken and none is accepted, which is as near as it comes."""
        self.server.stop()

    def restore(self) -> None:
        self.server.restart()

    def kill(self) -> None:
        self.server.stop()

    def boot(self) -> None:
        self.server.restart()

    def slow(self, rate: str) -> None:
        raise NotHere(self.name)

    def fill_disk(self, leave: int = 0) -> None:
        raise NotHere(self.name)

    def empty_disk(self) -> None:
        raise NotHere(self.name)

    def gpus(self, captured: str, used: Sequence[int] = ()) -> None:
        raise NotHere(self.name)


class Loopback:
    """All of them, and the folder that they live in."""

    def __init__(self, count: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qd-lab-"))
        self.hosts = [self._host(number) for number in range(1, count + 1)]

    def _host(self, number: int) -> LoopbackHost:
        name, folder = f"te{number}", self.folder / f"te{number}"
        folder.mkdir()
        server = sshd.start(folder, f"127.0.0.{10 + number}")
        return LoopbackHost(name, server.address, server.port, server.user, server.key, "", folder, server)

    def close(self) -> None:
        for host in self.hosts:
            host.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
