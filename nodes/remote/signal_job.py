"""Signal every process of a job: ``python3 - <job directory> <signal number>``. Runs on the node, stdlib only.

A process belongs to the job when it is in the session of the job's runner, or descends from it, or carries the job's
mark QD_JOB in its environment. The runner itself is spared, so that it can write the exit status down.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Dict, Tuple  # noqa: UP035  (Python 3.8)

Table = Dict[int, Tuple[int, int, bool]]  # noqa: UP006


def table() -> Table:
    """pid -> (parent, session, carries the mark) of every process that can be seen."""
    mark = ("QD_JOB=" + sys.argv[1]).encode()
    found: Table = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            marked = mark in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found[int(folder.name)] = (int(after[1]), int(after[3]), marked)
    return found


def members(processes: Table, runner: int) -> set[int]:
    """The pids of the job: its session, what is marked, and all that descends from either."""
    mine = {pid for pid, (_, session, marked) in processes.items() if marked or (runner and session == runner)}
    size = -1
    while size != len(mine):
        size = len(mine)
        mine |= {pid for pid, (parent, _, _) in processes.items() if parent in mine}
    return mine - {runner, os.getpid()}


def runner_pid() -> int:
    """The runner, if it still is the process that wrote the pid file; else 0."""
    try:
        pid, ticks, _ = Path(sys.argv[1], "pid").read_text().split()
        alive = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode() == ticks
    except (OSError, ValueError):
        return 0
    return int(pid) if alive else 0


def main() -> None:
    count = 0
    for pid in members(table(), runner_pid()):
        with suppress(OSError):  # gone meanwhile
            os.kill(pid, int(sys.argv[2]))
            count += 1
    print(count)


main()
