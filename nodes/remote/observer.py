"""Watches one node from inside: runs there over one SSH channel, standard library only, and ends with its stdin.

Standard input, one JSON object a line: ``{"follow": <id>, "dir": <directory>, "at": <byte>, "keep": <bytes>}``,
``{"forget": <id>}``. Standard output, one JSON object a line, a log chunk's followed by its bytes::

    {"log": <id>, "at": <byte>, "size": <n>}\\n<n bytes>
    {"log": <id>, "at": <byte>, "size": <n>, "packed": <m>}\\n<m bytes, which zlib makes n>
    {"end": <id>, "state": "exited" | "lost", "status": <exit status or null>, "size": <bytes of the log>}
    {"sample": {"t": …, "cpu": …, "mem": [used, total], "disk": [used, total], "gpus": [[index, used MiB, total MiB,
        load %, °C, W], …]}}
    {"who": [[index of the GPU, pid, MiB, user, command, job], …]}   when it changes, and each minute

Its one argument, which may be missing, is the directory whose disk is watched.

Nothing is kept here: whoever reads says where to begin, so a broken connection loses nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import re
import select
import shutil
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
WORTH_PACKING = 1 << 14  # bytes; SSH costs more than zlib for anything larger
SLACK = 16 << 20  # bytes beyond those to keep after which a log's beginning is let go of
BUSY = 0.05
PATIENCE = 120  # seconds for a job to have a pid; its launch may be said again in that time
GPU_QUERY = ("index", "memory.used", "memory.total", "utilization.gpu", "temperature.gpu", "power.draw", "uuid")
HOLDER_QUERY = ("gpu_uuid", "pid", "used_memory")
HOLDERS_EVERY = 5
#: Seconds without a word of it after which a GPU, or a process on one, is not there any more.
GPU_PATIENCE, HOLDER_PATIENCE = 15, 12
MOST_HOLDERS = 64
DISK_EVERY, REMIND_EVERY = 30, 60
SECRET_ARGUMENT = re.compile(r"((?:key|token|password|secret)[\w-]*[= ])\S+", re.IGNORECASE)


def say(message: dict[str, Any], data: bytes = b"") -> None:
    out = sys.stdout.buffer
    out.write(json.dumps(message, separators=(",", ":")).encode() + b"\n" + data)
    out.flush()


class Job:
    """One followed job."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.id, self.dir, self.at = order["follow"], Path(order["dir"]), order["at"]
        self.keep = order.get("keep", 0)  # bytes; 0: all
        self.kept = 0
        self.looked, self.born = 0.0, time.monotonic()

    def step(self) -> str:
        """Send what is new: "more" when there was some, "over" when the job has ended and all of it was sent."""
        status = self.status()
        if self.send():
            return "more"
        if status is None:
            return "quiet"
        say({"end": self.id, "size": self.at, **status})
        return "over"

    def send(self) -> bool:
        try:
            with (self.dir / "log").open("rb") as file:
                file.seek(self.at)
                data = file.read(CHUNK)
        except OSError:
            return False
        if data:
            self.say(data)
            self.at += len(data)
            self.let_go()
        return bool(data)

    def say(self, data: bytes) -> None:
        message = {"log": self.id, "at": self.at, "size": len(data)}
        packed = zlib.compress(data, 1) if len(data) >= WORTH_PACKING else data
        if len(packed) < len(data):
            say({**message, "packed": len(packed)}, packed)
        else:
            say(message, data)

    def let_go(self) -> None:
        """Free the disk of what was sent long ago: a hole in the file, so that offsets go on meaning what they did."""
        if not self.keep or self.at - self.kept < self.keep + SLACK:
            return
        first = (self.at - self.keep) // 4096 * 4096
        draft = self.dir / "log.kept.new"
        with suppress(OSError):
            draft.write_text(f"{first}\n")
            draft.replace(self.dir / "log.kept")  # first said, then done: nobody reads a hole as text
            punch(self.dir / "log", first)
        self.kept = first

    def status(self) -> dict[str, Any] | None:
        """How it ended; None while it runs or was not started. Read before the log, so that no last byte is missed."""
        ended = self.exit_status()
        if ended is not None or time.monotonic() - self.looked < 1:
            return ended
        self.looked = time.monotonic()
        if self.alive():
            return None
        return self.exit_status() or {"state": "lost", "status": None}  # it may have ended between the two looks

    def exit_status(self) -> dict[str, Any] | None:
        try:
            return {"state": "exited", "status": int((self.dir / "exit").read_text())}
        except (OSError, ValueError):
            return None

    def alive(self) -> bool:
        """Whether the runner still runs; one that has no pid yet is waited for a while."""
        try:
            pid, ticks, boot = (self.dir / "pid").read_text().split()
        except (OSError, ValueError):
            return time.monotonic() - self.born < PATIENCE
        try:
            began = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
            return began == ticks and Path("/proc/sys/kernel/random/boot_id").read_text().strip() == boot
        except OSError:
            return False


def punch(path: Path, size: int) -> None:
    """Free the first ``size`` bytes of a file without moving the rest, where the file system can."""
    keep_size, punch_hole = 1, 2
    fallocate = ctypes.CDLL(None).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    with path.open("r+b") as file:
        fallocate(file.fileno(), keep_size | punch_hole, 0, size)


class Host:
    """CPU, memory and disk of the machine."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.before = self.ticks()
        self.disk, self.disk_due = [0, 0], 0.0

    @staticmethod
    def ticks() -> tuple[int, int]:
        """Of all processors since the boot: all, and idle."""
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    def sample(self) -> dict[str, Any]:
        total, idle = self.ticks()
        spent = max(1, total - self.before[0])
        cpu = 100.0 * (1 - (idle - self.before[1]) / spent)
        self.before = (total, idle)
        self.look_at_disk()
        return {"t": round(time.time(), 1), "cpu": round(min(100.0, max(0.0, cpu)), 1), "mem": self.memory(),
                "disk": self.disk}

    @staticmethod
    def memory() -> list[int]:
        lines = Path("/proc/meminfo").read_text().splitlines()
        memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[:3]}
        return [memory["MemTotal"] - memory.get("MemAvailable", memory["MemFree"]), memory["MemTotal"]]

    def look_at_disk(self) -> None:
        if time.monotonic() < self.disk_due:
            return
        self.disk_due = time.monotonic() + DISK_EVERY
        try:
            disk = os.statvfs(self.directory if os.path.isdir(self.directory) else os.path.expanduser("~"))  # noqa: PTH112, PTH111
        except OSError:
            return
        # As df counts it: what only root may use is neither free nor in use.
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        self.disk = [used, used + disk.f_bavail * disk.f_frsize]


class Smi:
    """One nvidia-smi that asks in a loop of its own, read without waiting."""

    def __init__(self, what: str, fields: tuple[str, ...], seconds: int) -> None:
        self.command = ["nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits",
                        "-l", str(seconds)]
        self.width = len(fields)
        self.process: subprocess.Popen[bytes] | None = None
        self.rest = b""
        self.retry_at = 0.0

    def rows(self) -> list[list[str]]:
        """What it printed since the last call."""
        if self.process is None and time.monotonic() >= self.retry_at:
            self.retry_at = time.monotonic() + 10
            self.process = self.start()
        lines = self.drain(self.process) if self.process is not None else []
        rows = [[word.strip() for word in line.decode(errors="replace").split(",")] for line in lines]
        return [row for row in rows if len(row) == self.width]

    def start(self) -> subprocess.Popen[bytes] | None:
        if not shutil.which("nvidia-smi"):
            return None
        process = subprocess.Popen(
            self.command, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if process.stdout:
            os.set_blocking(process.stdout.fileno(), False)
        return process

    def drain(self, process: subprocess.Popen[bytes]) -> list[bytes]:
        while process.stdout and (data := process.stdout.read(65536)):
            self.rest += data
        *lines, self.rest = self.rest.split(b"\n")
        if process.poll() is not None:
            self.process, self.retry_at = None, time.monotonic() + 10
        return lines

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()


class Gpus:
    """The newest line of each GPU; one that is not spoken of any more is gone."""

    def __init__(self) -> None:
        self.smi = Smi("gpu", GPU_QUERY, 1)
        self.latest: dict[int, tuple[float, list[float | None]]] = {}
        self.index: dict[str, int] = {}  # by UUID

    def sample(self) -> list[list[float | None]]:
        now = time.monotonic()
        for row in self.smi.rows():
            if row[0].isdigit():
                index = self.index[row[-1]] = int(row[0])
                self.latest[index] = now, [index, *map(number, row[1:-1])]
        self.latest = {index: kept for index, kept in self.latest.items() if now - kept[0] < GPU_PATIENCE}
        return [self.latest[index][1] for index in sorted(self.latest)]


class Holders:
    """Who holds GPU memory: whose process it is and what it is called, read once for each process."""

    def __init__(self) -> None:
        self.smi = Smi("compute-apps", HOLDER_QUERY, HOLDERS_EVERY)
        self.seen: dict[tuple[str, int], tuple[float, float | None]] = {}
        self.described: dict[int, list[str]] = {}
        self.told: list[Any] = []
        self.remind_at = 0.0

    def news(self, index: dict[str, int]) -> list[Any] | None:
        """All of them, when something changed or it is time to say it again."""
        now = time.monotonic()
        for uuid, pid, used in self.smi.rows():
            if pid.isdigit():
                self.seen[uuid, int(pid)] = now, number(used)
        self.seen = {key: kept for key, kept in self.seen.items() if now - kept[0] < HOLDER_PATIENCE}
        found = [[index[uuid], pid, used, *self.describe(pid)]
                 for (uuid, pid), (_, used) in sorted(self.seen.items()) if uuid in index][:MOST_HOLDERS]
        if found == self.told and now < self.remind_at:
            return None
        self.told, self.remind_at = found, now + REMIND_EVERY
        self.described = {pid: words for pid, words in self.described.items() if any(pid == row[1] for row in found)}
        return found

    def describe(self, pid: int) -> list[str]:
        """User, command line and job (the directory's name) of a process; empty where it cannot be seen."""
        if pid not in self.described:
            self.described[pid] = [owner(pid), command_of(pid), job_of(pid)]
        return self.described[pid]


def owner(pid: int) -> str:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    except OSError:
        return ""


def command_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return SECRET_ARGUMENT.sub(r"\1•••", " ".join([os.path.basename(words[0]), *words[1:]]).strip())[:80]  # noqa: PTH119


def job_of(pid: int) -> str:
    """The job of ours that a process belongs to."""
    try:
        for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if word.startswith(b"QD_JOB="):
                return os.path.basename(word[7:].decode(errors="replace").rstrip("/"))  # noqa: PTH119
    except OSError:
        pass
    return ""


def number(word: str) -> float | None:
    """A number as short as it can be written."""
    try:
        value = float(word)
        return int(value) if value == int(value) else value
    except (ValueError, OverflowError):
        return None  # "[N/A]", "[Unknown Error]"


def take_orders(jobs: dict[str, Job], rest: bytes) -> bytes | None:
    """Read what the other side asked for into ``jobs``; returns the unfinished line, None at the end."""
    data = os.read(0, 65536)
    if not data:
        return None
    *lines, rest = (rest + data).split(b"\n")
    for line in lines:
        order = json.loads(line)
        if "follow" in order:
            jobs[order["follow"]] = Job(order)
        else:
            jobs.pop(order["forget"], None)
    return rest


class Samples:
    """What is said once a second."""

    def __init__(self) -> None:
        self.host, self.gpus, self.holders = Host(*sys.argv[1:2] or [""]), Gpus(), Holders()
        self.due = time.monotonic() + 1

    def say_what_is_due(self) -> None:
        if time.monotonic() < self.due:
            return
        self.due = max(self.due + 1, time.monotonic())
        say({"sample": {**self.host.sample(), "gpus": self.gpus.sample()}})
        if self.gpus.latest and (who := self.holders.news(self.gpus.index)) is not None:
            say({"who": who})

    def close(self) -> None:
        self.gpus.smi.close()
        self.holders.smi.close()


def main() -> None:
    jobs: dict[str, Job] = {}
    rest: bytes | None = b""
    samples = Samples()
    news: list[str] = []
    while rest is not None:
        until_due = max(0.0, samples.due - time.monotonic())
        pause = 0 if "more" in news else min(BUSY, until_due) if jobs else until_due
        if select.select([0], [], [], pause)[0]:
            rest = take_orders(jobs, rest)
        news = [job.step() for job in jobs.values()]
        jobs = {job.id: job for job, new in zip(jobs.values(), news) if new != "over"}  # noqa: B905  (Python 3.8)
        samples.say_what_is_due()
    samples.close()


with suppress(BrokenPipeError, KeyboardInterrupt):
    main()
