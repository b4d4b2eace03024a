"""N hosts te1..teN with a real OpenSSH server each, on this one machine, for tests and for a person to play with.

As root each host is a set of Linux namespaces: its own address on a bridge, host name, processes, file system (what
it writes is its own; of this machine it sees only the installed software), /dev/shm and /tmp. It can be cut off,
slowed, killed and booted, its disk filled, and it can be given an nvidia-smi that replays captured output. Without root
each is an sshd on a loopback address of its own: `Lab.real` says which it is, and what cannot be done says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import loopback, namespaces
from tests.lab.host import PASSWORD, Host, until
from tests.lab.records import Record, claim, records, sweep

__all__ = ["PASSWORD", "Host", "Lab", "Record", "records", "sweep", "until"]


def pip_settings() -> dict[str, str]:
    """Where this machine's user gets packages from, the users of the hosts do too, through its door."""
    mine = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return {"PIP_PROXY": f"http://{{gateway}}:{namespaces.DOOR}", **mine}


class Lab:
    """``with Lab(4) as lab: lab.hosts[0].run("hostname")``. All hosts answer on their SSH port once it is made.

    ``share`` names directories of this machine that every host can read at the same path, or at the one given: an
    environment that is too big to have four times. ``disk`` and ``shm`` are the sizes of each host's own. ``settings``
    are variables of all that SSH runs there, pip's of this machine unless given; ``{gateway}`` in them becomes this
    machine's address.
    """

    def __init__(
        self, count: int = 4, *, disk: str = "16g", shm: str = "2g", share: Mapping[str, Path] | Sequence[Path] = (),
        settings: Mapping[str, str] | None = None, kept: bool = False,
    ) -> None:  # fmt: skip
        self.real = namespaces.possible()
        self._loopback: loopback.Loopback | None = None
        self.record: Record | None = None
        if not self.real:
            self._loopback = loopback.Loopback(count)
            self.hosts: list[Host] = list(self._loopback.hosts)
            return
        sweep()
        self.record = claim(kept)
        settings = pip_settings() if settings is None else settings
        try:
            self.hosts = namespaces.build(self.record, count, disk, shm, share, settings)
        except BaseException:
            self.record.destroy()
            raise

    @classmethod
    def standing(cls) -> Self | None:
        """The lab that `bin/lab up` left standing, if there is one."""
        return next((cls.of(record) for record in records() if record.kept), None)

    @classmethod
    def of(cls, record: Record) -> Self:
        """The lab that a record tells of."""
        lab = cls.__new__(cls)
        lab.real, lab.record, lab._loopback = True, record, None
        lab.hosts = [namespaces.found(record, folder) for folder in record.hosts()]
        return lab

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def close(self) -> None:
        """Nothing of it is left on return."""
        if self._loopback is not None:
            self._loopback.close()
        if self.record is not None:
            for host in self.hosts:
                host.kill()
            self.record.destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
