"""A whole Quarterdeck for one test session: `manage.py up` in its own process, with its own var/."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from nodes.remote import job
from nodes.remote.local import LocalHost

ROOT = Path(__file__).resolve().parents[2]


def until(true: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition. AssertionError naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


def end_jobs(root: Path) -> None:
    """End what still runs of the jobs on the node whose root this is: model servers outlive Quarterdeck by design."""
    for place in (root / "jobs").glob("*"):
        job.signal(LocalHost(), str(place), "KILL")


class Deck:
    """``manage.py up`` with what it printed so far; ends, with all it started, at `stop`."""

    def __init__(self, var: Path, *arguments: str, **environment: str) -> None:
        self.var = var
        self._line = [sys.executable, "manage.py", "up", "--port", "0", *arguments]
        self.environment = {**os.environ, "QUARTERDECK_VAR": str(var), "LANG": "C.UTF-8", **environment}
        self.start()

    def start(self) -> None:
        """Start it, again after `crash`, with what its var/ has."""
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            self._line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=self.environment)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as printed:
            for line in printed:
                self.lines.append(line)  # one by one: they are looked at meanwhile

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for_address(self) -> str:
        """The address it serves, once it does."""
        found: list[str] = []

        def answered() -> bool:
            assert self.process.poll() is None, self.output
            found[:] = re.findall(r"^\s+(http://\S+)$", self.output, re.MULTILINE)
            return bool(found)

        until(answered, 90, "the address is printed")
        return found[0]

    @property
    def password(self) -> str:
        return (self.var / "admin-password").read_text().strip()

    def children(self, *words: str) -> list[int]:
        """Pids of this installation's own processes whose command line has all the words."""
        found = []
        mark = f"QUARTERDECK_VAR={self.var}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                ours = mark in (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if ours and int(folder.name) != self.process.pid and all(word in line for word in words):
                found.append(int(folder.name))
        return found

    def kill(self, *words: str) -> None:
        """kill -9 the processes whose command line has all the words."""
        pids = self.children(*words)
        assert pids, f"nothing to kill: {words}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def crash(self, but: Collection[int] = ()) -> None:
        """kill -9 all processes of it, except those named; nothing is told or put away."""
        self.process.kill()
        self.process.wait(10)
        until(lambda: not self._killed(but), 10, "nothing of it is left")
        self._reader.join(10)

    def _killed(self, but: Collection[int]) -> set[int]:
        """What is left of it, and was sent SIGKILL just now."""
        found = set(self.children()) - set(but)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def stop(self) -> int:
        """Ctrl-C, and wait for its end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(90)
            self._reader.join(10)
            return status
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"it did not end on Ctrl-C:\n{self.output}") from None

    def result(self) -> dict[str, object]:
        """The JSON object of ``--once``, its last line."""
        return dict(json.loads(self.output.strip().splitlines()[-1]))
