"""Watches one node from inside: runs there over one SSH channel, standard library only, and ends with its stdin.

Standard input, one JSON object a line: ``{"follow": <id>, "dir": <directory>, "at": <byte>, "keep": <bytes>}``,
``{"forget": <id>}``. Standard output, one JSON object a line, a log chunk's followed by its bytes::

    {"log": <id>, "at": <byte>, "size": <n>}\\n<n bytes>
    {"log": <id>, "at": <byte>, "size": <n>, "packed": <m>}\\n<m bytes, which zlib makes n>
    {"end": <id>, "state": "exited" | "lost", "status": <exit status or null>, "size": <bytes of the log>}
    {"sample": {"t": …, "cpu": …, "mem": [used, total], "gpus": [{"i": …, "used": …, "total": …, …}]}}

Nothing is kept here: whoever reads says where to begin, so a broken connection loses nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
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
BUSY, IDLE = 0.05, 0.5
PATIENCE = 120  # seconds for a job to have a pid; its launch may be said again in that time
GPU_QUERY = ("index", "memory.used", "memory.total", "utilization.gpu", "temperature.gpu", "power.draw")


def say(message: dict[str, Any], data: bytes = b"") -> None:
    out = sys.stdout.buffer
    out.write(json.dumps(message).encode() + b"\n" + data)
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
    """CPU and memory of the machine, from /proc."""

    def __init__(self) -> None:
        self.before = self.ticks()

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
        lines = Path("/proc/meminfo").read_text().splitlines()
        memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total_memory = memory["MemTotal"]
        free = memory.get("MemAvailable", memory["MemFree"])
        return {"t": round(time.time(), 3), "cpu": round(min(100.0, max(0.0, cpu)), 1),
                "mem": [total_memory - free, total_memory]}


class Gpus:
    """nvidia-smi in its own loop: one line a GPU a second, read without waiting."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.rest = b""
        self.latest: dict[int, dict[str, Any]] = {}
        self.retry_at = 0.0

    def sample(self) -> list[dict[str, Any]]:
        if self.process is None and shutil.which("nvidia-smi") and time.monotonic() >= self.retry_at:
            self.process = self.start()
        if self.process is not None:
            self.drain(self.process)
        return [self.latest[index] for index in sorted(self.latest)]

    def start(self) -> subprocess.Popen[bytes]:
        query = "--query-gpu=" + ",".join(GPU_QUERY)
        process = subprocess.Popen(
            ["nvidia-smi", query, "--format=csv,noheader,nounits", "-l", "1"], bufsize=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if process.stdout:
            os.set_blocking(process.stdout.fileno(), False)
        return process

    def drain(self, process: subprocess.Popen[bytes]) -> None:
        while process.stdout and (data := process.stdout.read(65536)):
            self.rest += data
        *lines, self.rest = self.rest.split(b"\n")
        for line in lines:
            self.take(line.decode(errors="replace"))
        if process.poll() is not None:
            self.process, self.latest, self.retry_at = None, {}, time.monotonic() + 10

    def take(self, line: str) -> None:
        words = [word.strip() for word in line.split(",")]
        if len(words) == len(GPU_QUERY) and words[0].isdigit():
            used, total, util, temp, power = [number(word) for word in words[1:]]
            self.latest[int(words[0])] = {
                "i": int(words[0]), "used": used, "total": total, "util": util, "temp": temp, "power": power}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()


def number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
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


def main() -> None:
    jobs: dict[str, Job] = {}
    rest: bytes | None = b""
    host, gpus, due = Host(), Gpus(), time.monotonic() + 1
    news: list[str] = []
    while rest is not None:
        pause = 0 if "more" in news else min(BUSY if jobs else IDLE, max(0.0, due - time.monotonic()))
        if select.select([0], [], [], pause)[0]:
            rest = take_orders(jobs, rest)
        news = [job.step() for job in jobs.values()]
        jobs = {job.id: job for job, new in zip(jobs.values(), news) if new != "over"}  # noqa: B905  (Python 3.8)
        if time.monotonic() >= due:
            say({"sample": {**host.sample(), "gpus": gpus.sample()}})
            due = max(due + 1, time.monotonic())
    gpus.close()


with suppress(BrokenPipeError, KeyboardInterrupt):
    main()
