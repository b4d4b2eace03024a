"""What labs there are on this machine: one directory each, which names all that the lab has made outside itself.

So that whatever a killed test left is found and taken away by the next lab, and nothing else is.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

BASE = Path("/run/quarterdeck-lab")
#: The source article's addresses begin at 172.18.81.126; a second lab beside it takes the next network.
FIRST, LAST = 81, 250


@dataclass(frozen=True)
class Record:
    """One lab's directory, ``<BASE>/<number>``. The number is also that of its bridge and its network."""

    folder: Path
    doors: list[subprocess.Popen[bytes]] = field(default_factory=list, compare=False)  # ours, to be waited for

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def bridge(self) -> str:
        return f"qdlab{self.number}"

    @property
    def network(self) -> str:
        return f"172.18.{self.number}"

    @property
    def owner(self) -> tuple[int, str]:
        """The process whose lab this is, as pid and start time; pid 0 for one that stays until it is taken down."""
        said = json.loads((self.folder / "owner.json").read_text())
        return int(said["pid"]), str(said["began"])

    @property
    def kept(self) -> bool:
        return self.owner[0] == 0

    @property
    def abandoned(self) -> bool:
        pid, start = self.owner
        return pid != 0 and began(pid) != start

    def hosts(self) -> list[Path]:
        """The directories of its hosts, te1 first."""
        return sorted(self.folder.glob("te*"), key=lambda folder: int(folder.name[2:]))

    def destroy(self) -> None:
        """Take away all that it has made: processes, interfaces, mounts, files."""
        for host in (*self.hosts(), self.folder / "door"):
            end(host)
        for door in self.doors:
            door.communicate()
        ip("link", "del", self.bridge, check=False)
        for host in self.hosts():
            subprocess.run(["umount", str(host / "disk")], capture_output=True)
        shutil.rmtree(self.folder)


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


def began(pid: int) -> str:
    """When a process started, in ticks since the boot; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def end(host: Path) -> None:
    """Kill a host's process 1, and with it all others; they are gone on return."""
    with suppress(OSError, ValueError):
        pid, start = (host / "pid").read_text().split()
        if began(int(pid)) == start:
            os.kill(int(pid), signal.SIGKILL)
            deadline = time.monotonic() + 10
            while began(int(pid)) == start and not _zombie(int(pid)):
                assert time.monotonic() < deadline, f"{host.name} does not end"
                time.sleep(0.01)
    (host / "pid").unlink(missing_ok=True)


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def records() -> Iterator[Record]:
    for folder in sorted(BASE.glob("[0-9]*")):
        if (folder / "owner.json").exists():
            yield Record(folder)


def sweep() -> None:
    """Destroy the labs whose tests are gone."""
    for record in records():
        if record.abandoned:
            record.destroy()


def claim(kept: bool) -> Record:
    """A directory of one's own for a new lab, with who owns it in it from the first moment."""
    BASE.mkdir(mode=0o700, exist_ok=True)
    pid = 0 if kept else os.getpid()
    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=BASE))
    (fresh / "owner.json").write_text(json.dumps({"pid": pid, "began": began(pid)}))
    taken = _networks()
    for number in range(FIRST, LAST):
        if any(ipaddress.ip_network(f"172.18.{number}.0/24").overlaps(network) for network in taken):
            continue
        with suppress(OSError):  # another lab has this number
            return Record(fresh.rename(BASE / str(number)))
    raise RuntimeError("every network from 172.18.81.0 on is in use on this machine")


def _networks() -> list[ipaddress.IPv4Network]:
    said = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    return [ipaddress.ip_network(found, strict=False) for found in re.findall(r"inet (\S+/\d+)", said)]  # type: ignore[misc]
