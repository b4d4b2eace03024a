"""Signal every process of a job: ``python3 - <job directory> <signal number>``. Runs on the node, standard library only.

A process belongs to the job when it is in the session of the job's runner, or descends from it, or carries the job's
mark QD_JOB in its environment. The runner itself is spared, so that it can write the exit status down.
"""

import os
import sys


def table():
    """pid -> (parent, session, carries the mark) of every process that can be seen."""
    mark, found = ("QD_JOB=" + sys.argv[1]).encode(), {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % name, "rb") as file:
                after = file.read().rpartition(b")")[2].split()
            with open("/proc/%s/environ" % name, "rb") as file:
                marked = mark in file.read().split(b"\0")
        except OSError:
            continue
        found[int(name)] = (int(after[1]), int(after[3]), marked)
    return found


def members(processes, runner):
    """The pids of the job: its session, what is marked, and all that descends from either."""
    mine = {pid for pid, (_, session, marked) in processes.items() if marked or (runner and session == runner)}
    size = -1
    while size != len(mine):
        size = len(mine)
        mine |= {pid for pid, (parent, _, _) in processes.items() if parent in mine}
    return mine - {runner, os.getpid()}


def runner_pid():
    """The runner, if it still is the process that wrote the pid file."""
    try:
        with open(os.path.join(sys.argv[1], "pid")) as file:
            pid, ticks, _ = file.read().split()
        with open("/proc/%s/stat" % pid, "rb") as file:
            alive = file.read().rpartition(b")")[2].split()[19].decode() == ticks
    except (OSError, ValueError):
        return 0
    return int(pid) if alive else 0


def main():
    count = 0
    for pid in members(table(), runner_pid()):
        try:
            os.kill(pid, int(sys.argv[2]))
            count += 1
        except OSError:
            pass  # gone meanwhile
    print(count)


main()
