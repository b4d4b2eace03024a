"""Jobs on a real machine: started once however often it is said, followed by byte, ended with a status or lost."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from controlplane.secrets import Secret
from nodes.remote import job, ssh
from nodes.remote.command import command, python, script
from nodes.remote.host import Host
from nodes.remote.local import LocalHost
from nodes.watch import OBSERVER, Frames
from tests.support import sshd as sshd_support


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.sshd)])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    if request.param == "local":
        yield LocalHost()
        return
    server = sshd_support.start(tmp_path / "sshd")
    with ssh.connect(server.login(), server.host_key) as connected:
        yield connected
    server.stop()


def until(true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "jobs" / "one with a space"
    yield folder
    job.signal(LocalHost(), str(folder), "KILL")


def ended(place: Path) -> Callable[[], bool]:
    return (place / "exit").exists


def test_a_start_that_is_said_twice_at_once_leaves_the_files_of_the_running_job_alone(host: Host, place: Path) -> None:
    """The second one comes over a slow line: half of it is there when the job reads its files."""
    text = 'until [ -e go ]; do sleep 0.05; done; sha256sum < data'
    data = b"0123456789abcdef" * 65536
    work = command("sh", "-c", text, cwd=str(place)).with_files({"data": data})
    content = {"run": job.run_script(work), "runner": job._RUNNER, **work.files}
    slow = subprocess.Popen(["sh", "-euc", job._LAUNCH, "sh", str(place)], stdin=subprocess.PIPE)
    assert slow.stdin is not None
    with slow:
        until(lambda: unpacks(slow.pid))
        job.start(host, str(place), work)
        runner(place)
        archive = job._tar({"data": data, **content})
        slow.stdin.write(archive[: len(data) // 2])
        slow.stdin.flush()
        until(lambda: [path for path in place.rglob("data") if 0 < path.stat().st_size < len(data)])
        (place / "go").touch()
        until(ended(place))
        slow.stdin.write(archive[len(data) // 2 :])
    assert slow.returncode == 0
    assert (place / "log").read_text().split()[0] == hashlib.sha256(data).hexdigest()
    assert list(place.glob("new.*")) == []


def unpacks(shell: int) -> bool:
    """Whether the shell's child is tar."""
    children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
    return any(Path(f"/proc/{child}/comm").read_text() == "tar\n" for child in children)


def runner(place: Path) -> int:
    until((place / "pid").exists)
    return int((place / "pid").read_text().split()[0])


class Observer:
    """The real observer program on a host, read in the background."""

    def __init__(self, host: Host, *mark: str) -> None:
        self.channel = host.open(python("python3", OBSERVER, *mark))
        self.logs: dict[str, bytearray] = {}
        self.ends: dict[str, dict[str, Any]] = {}
        self.samples: list[dict[str, Any]] = []
        self.who: list[list[list[Any]]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def follow(self, name: str, place: Path, at: int = 0, keep: int = 0) -> None:
        order = {"follow": name, "dir": str(place), "at": at, "keep": keep}
        self.channel.write(json.dumps(order).encode() + b"\n")

    def _read(self) -> None:
        for message, data in Frames(self.channel):
            if "log" in message:
                self.logs.setdefault(message["log"], bytearray()).extend(data)
            elif "end" in message:
                self.ends[message["end"]] = message
            elif "who" in message:
                self.who.append(message["who"])
            else:
                self.samples.append(message["sample"])

    def close(self) -> None:
        self.channel.interrupt()
        self._thread.join(5)
        self.channel.close()


@pytest.fixture
def observer(host: Host) -> Iterator[Observer]:
    watching = Observer(host)
    yield watching
    watching.close()


def test_a_job_leaves_its_log_and_its_status(host: Host, place: Path) -> None:
    job.start(host, str(place), script("echo out; echo err >&2; exit 3"))
    until(ended(place))
    assert (place / "exit").read_text().strip() == "3"
    assert sorted((place / "log").read_text().split()) == ["err", "out"]


def test_starting_it_again_and_again_runs_it_once(host: Host, place: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    told = script('echo ran >> "$1"', str(marks))
    threads = [threading.Thread(target=job.start, args=[host, str(place), told]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(ended(place))
    job.start(host, str(place), told)
    assert marks.read_text() == "ran\n"


def test_it_outlives_the_connection_that_started_it(place: Path, tmp_path: Path) -> None:
    server = sshd_support.start(tmp_path / "sshd")
    with ssh.connect(server.login(), server.host_key) as connected:
        told = script('until [ -e "$1" ]; do sleep 0.05; done; echo survived', str(tmp_path / "go"))
        job.start(connected, str(place), told)
    server.stop()
    (tmp_path / "go").touch()
    until(ended(place))
    assert (place / "log").read_text() == "survived\n"


def test_files_lie_beside_it_and_secrets_stand_in_no_argument_list(host: Host, place: Path) -> None:
    said_by = 'cat "$QD_JOB/data"; printf " %s" "$KEY"; tr "\\0" " " < /proc/$$/cmdline'
    told = script(said_by, env={"KEY": Secret("s3cret")})
    job.start(host, str(place), told.with_files({"data": b"content"}))
    until(ended(place))
    said = (place / "log").read_text()
    assert said.startswith("content s3cret")
    assert "s3cret" not in said.removeprefix("content s3cret")
    assert (place / "data").stat().st_mode & 0o777 == 0o600
    assert (place / "run").stat().st_mode & 0o777 == 0o600
    assert "s3cret" not in job.shown(told)


def test_stopping_reaches_children_that_left_the_session(host: Host, place: Path) -> None:
    told = script("setsid sleep 300 & setsid sh -c 'trap \"\" TERM; sleep 300' & echo started; wait")
    job.start(host, str(place), told)
    until(lambda: (place / "log").exists() and (place / "log").read_text() == "started\n")
    assert job.signal(host, str(place), "TERM") >= 3
    until(ended(place))
    job.signal(host, str(place), "KILL")
    until(lambda: job.signal(host, str(place), "KILL") == 0)
    assert (place / "exit").read_text().strip() != "0"


def test_following_sends_every_byte_once_and_then_the_end(host: Host, place: Path, observer: Observer) -> None:
    job.start(host, str(place), python("python3", "for i in range(200000): print(i)"))
    observer.follow("a", place)
    until(lambda: "a" in observer.ends)
    written = (place / "log").read_bytes()
    assert hashlib.sha256(observer.logs["a"]).digest() == hashlib.sha256(written).digest()
    assert observer.ends["a"] == {"end": "a", "state": "exited", "status": 0, "size": len(written)}


def test_following_goes_on_from_the_byte_that_is_named(host: Host, place: Path, observer: Observer) -> None:
    job.start(host, str(place), command("printf", "%s", "0123456789"))
    until(ended(place))
    observer.follow("a", place, at=4)
    until(lambda: "a" in observer.ends)
    assert observer.logs["a"] == b"456789"


def test_a_job_whose_processes_were_killed_is_lost_not_running(host: Host, place: Path, observer: Observer) -> None:
    job.start(host, str(place), script("echo begun; sleep 300"))
    observer.follow("a", place)
    os.kill(runner(place), signal.SIGKILL)
    until(lambda: "a" in observer.ends)
    assert (observer.ends["a"]["state"], observer.ends["a"]["status"]) == ("lost", None)


def test_a_job_of_an_earlier_boot_is_lost(host: Host, place: Path, observer: Observer) -> None:
    place.mkdir(parents=True)
    (place / "pid").write_text(f"{os.getpid()} 1 00000000-0000-0000-0000-000000000000\n")
    observer.follow("a", place)
    until(lambda: "a" in observer.ends)
    assert observer.ends["a"]["state"] == "lost"


def test_memory_and_cpu_are_sampled_once_a_second(host: Host, observer: Observer) -> None:
    until(lambda: len(observer.samples) >= 3)
    first, *_, last = observer.samples
    used, total = last["mem"]
    assert 0 < used < total
    assert 0 <= last["cpu"] <= 100
    assert 0 < last["disk"][0] < last["disk"][1]
    assert 0.8 < (last["t"] - first["t"]) / (len(observer.samples) - 1) < 1.5


def test_gpus_are_sampled_through_nvidia_smi(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "bin" / "nvidia-smi"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\n# stand-in: replays two GPUs and a process once a second\n"
                        "while :; do case $1 in *compute*) printf 'GPU-b, %s, 512\\n' $PPID;;\n"
                        "*) echo '0, 21100, 23028, 74, 63, 139.2, GPU-a'\n"
                        "echo '1, 0, 23028, [N/A], 40, 15.0, GPU-b';;\n"
                        "esac; sleep 1; done\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("QD_JOB", "/root/jobs/a-job")
    watching = Observer(LocalHost(), "/", "--api-key", "hunter2")
    until(lambda: watching.samples and len(watching.samples[-1]["gpus"]) == 2 and any(watching.who))
    watching.close()
    assert watching.samples[-1]["gpus"] == [[0, 21100, 23028, 74, 63, 139.2], [1, 0, 23028, None, 40, 15]]
    (gpu, pid, used, user, command, job), = watching.who[-1]
    assert (gpu, used, user, job) == (1, 512, getpass.getuser(), "a-job")
    assert pid
    assert command.startswith("python3 -c")


def test_the_observer_ends_with_its_connection(host: Host, tmp_path: Path) -> None:
    mark = str(tmp_path).encode()
    watching = Observer(host, str(tmp_path))
    until(lambda: watching.samples)
    assert any(mark in words for words in command_lines())
    watching.close()
    until(lambda: not any(mark in words for words in command_lines()))


def command_lines() -> list[list[bytes]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found.append((folder / "cmdline").read_bytes().split(b"\0"))
    return found


def test_the_beginning_of_a_long_log_is_let_go_of_and_offsets_stay(host: Host, observer: Observer, place: Path) -> None:
    flood = "import sys; [sys.stdout.write('%099d\\n' % n) for n in range(300_000)]"
    job.start(host, str(place), command(sys.executable, "-c", flood))
    observer.follow("a", place, keep=1 << 20)
    until(lambda: "a" in observer.ends)
    assert len(observer.logs["a"]) == 30_000_000
    kept = int((place / "log.kept").read_text())
    assert kept % 4096 == 0
    assert 30_000_000 - kept < (1 << 20) + (17 << 20)
    assert (place / "log").stat().st_size == 30_000_000
    assert (place / "log").stat().st_blocks * 512 < 30_000_000 - kept + (1 << 20)
    first = job.read_log(host, str(place), 5, 100)
    assert (first.start, first.data) == (kept, bytes(observer.logs["a"][kept : kept + 100]))
    assert job.read_log(host, str(place), 29_999_995, 100) == (29_999_995, b"9999\n")


def test_a_piece_of_the_log_is_read_by_offset(host: Host, place: Path) -> None:
    job.start(host, str(place), command("printf", "%s", "0123456789"))
    until(ended(place))
    assert job.read_log(host, str(place), 3, 4) == (3, b"3456")
    assert job.read_log(host, str(place), 8, 100) == (8, b"89")
    assert job.read_log(host, str(place), 50, 100) == (50, b"")
