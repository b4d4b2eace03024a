"""Ends processes: ``end_processes.py PID:STARTED …``. Runs on the node, stdlib only; says which would not go.

A pid alone may name somebody else by now; with the time of its start, as /proc has it, it does not.
"""

import os
import pathlib
import signal
import sys
import time

GRACE, MOST = 10.0, 20.0  # seconds


def started(pid):
    try:
        after = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after[0] == "Z" else after[19]


def alive(wanted):
    return {pid: ticks for pid, ticks in wanted.items() if started(pid) == ticks}


def sent(pid, how):
    """Signal a process; whether that was allowed."""
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True


def main():
    left = dict(word.split(":") for word in sys.argv[1:])
    refused, began, how = set(), time.monotonic(), signal.SIGTERM
    while (left := alive(left)).keys() - refused and time.monotonic() - began < MOST:
        if how is not None:
            for pid in left:
                refused |= set() if sent(int(pid), how) else {pid}
        killing = time.monotonic() - began > GRACE
        how = signal.SIGKILL if killing else None
        time.sleep(0.1)
    if left:
        sys.exit(" ".join(sorted(left, key=int)))


main()
