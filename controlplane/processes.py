"""Keeps Quarterdeck's own processes running until told to stop; knows nothing of what they do.

Every program leads a session of its own, so Ctrl-C in the terminal reaches the supervisor alone, which stops
them in order. A program that ends by itself is started again, at first soon, then less and less often.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

#: A log larger than this is put aside when its program is started for the first time.
LOG_LIMIT = 4 * 1024 * 1024
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
#: A program that ran this many seconds was healthy: the next restart is soon again.
HEALTHY_AFTER = 60.0


@dataclass(frozen=True)
class Program:
    """What to run. ``grace``: seconds between asking it to stop and killing its whole process group."""

    name: str
    command: tuple[str, ...]
    log: Path
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    grace: float = 8.0


class Keeper(threading.Thread):
    """Runs one program again and again. The thread lives as long as the process that it started."""

    def __init__(self, program: Program, ended: Callable[[Program, int, float], None]) -> None:
        super().__init__(name=f"keeper of {program.name}", daemon=True)
        self.program = program
        self.restarts = 0
        self._ended = ended
        self._stopping, self._over = threading.Event(), threading.Event()
        self._lock = threading.Lock()  # held while a process begins, and while one is reaped or signalled
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        try:
            self._keep()
        finally:
            self._over.set()

    def _keep(self) -> None:
        delay = FIRST_DELAY
        while (process := self._launch()) is not None:
            began = time.monotonic()
            status = self._wait_and_sweep(process)
            if self._stopping.is_set():
                return
            delay = FIRST_DELAY if time.monotonic() - began > HEALTHY_AFTER else delay
            self._ended(self.program, status, delay)
            self._stopping.wait(delay)
            self.restarts += 1
            delay = min(2 * delay, LONGEST_DELAY)

    def _launch(self) -> subprocess.Popen[bytes] | None:
        with self._lock, self.program.log.open("ab") as log:
            if self._stopping.is_set():
                return None
            self._process = subprocess.Popen(
                [*_dies_with_us(), *self.program.command],
                cwd=self.program.cwd,
                env={**os.environ, **self.program.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            return self._process

    def _wait_and_sweep(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status, once the process and whatever it left in its group are gone.

        The group is killed while the dead leader still holds its number: nobody else can have it.
        """
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            _signal_group(process.pid, signal.SIGKILL)
            return process.wait()

    def signal(self, number: int, group: bool = False) -> None:
        """Send a signal to the process, or to its whole group; to nobody between two processes."""
        with self._lock:
            if self._process and self._process.returncode is None:
                (_signal_group if group else os.kill)(self._process.pid, number)

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and start nothing again."""
        self._stopping.set()
        self.signal(signal.SIGTERM)

    def finish(self, deadline: float) -> None:
        """Wait until the process is gone; at ``deadline`` (monotonic) its process group is killed."""
        # Not join(): interrupted, it takes a thread of Python 3.11 that still runs for ended.
        if not self._over.wait(max(0.0, deadline - time.monotonic())):
            self.signal(signal.SIGKILL, group=True)
            self._over.wait()


class Supervisor:
    """Starts programs; leaving the ``with`` block stops them together, an interrupt kills them."""

    def __init__(self, say: Callable[[Program, int, float], None]) -> None:
        self.keepers: dict[str, Keeper] = {}
        self._say = say

    def start(self, program: Program) -> Keeper:
        keeper = self.keepers[program.name] = Keeper(program, self._say)
        program.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        put_aside(program.log)
        keeper.start()
        return keeper

    def stop(self) -> None:
        """Ask all to stop and wait for each as long as its grace; after an interrupt no longer."""
        began, patience = time.monotonic(), 1
        while True:
            try:
                for keeper in self.keepers.values():
                    keeper.ask_to_stop()
                for keeper in self.keepers.values():
                    keeper.finish(began + patience * keeper.program.grace)
                return
            except KeyboardInterrupt:
                patience = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def put_aside(log: Path, limit: int = LOG_LIMIT) -> None:
    """Rename a log that has grown beyond ``limit`` bytes to ``….1``, in place of the one put aside before."""
    if log.exists() and log.stat().st_size > limit:
        log.replace(log.with_name(f"{log.name}.1"))


def last_lines(log: Path, count: int = 8) -> str:
    """The end of a log, to show beside a failure."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])


def _dies_with_us() -> list[str]:
    """Should the supervisor be killed, the kernel stops what it started: setpriv asks it to."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
