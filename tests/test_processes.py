"""The supervisor: what dies comes back, what is told to stop is gone, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane import processes
from controlplane.processes import Program, Supervisor, last_lines, put_aside
from controlplane.terminal import wait_until

ROOT = Path(__file__).resolve().parent.parent
SLEEP = "said(os.getpid())\ntime.sleep(600)"
STUBBORN = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEP}"


class Said(list[tuple[str, int, float]]):
    """Which program ended, how, and in how many seconds it starts again."""

    def __call__(self, program: Program, status: int, delay: float) -> None:
        self.append((program.name, status, delay))


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def supervisor(said: Said) -> Iterator[Supervisor]:
    with Supervisor(said) as supervisor:
        yield supervisor


def program(directory: Path, code: str, grace: float = 20.0) -> Program:
    """Python code as a program; ``said()`` in it writes a line to its log."""
    prelude = "import os, signal, subprocess, sys, time\ndef said(line): print(line, flush=True)\n"
    command = (sys.executable, "-c", prelude + code)
    return Program("example", command, directory / "log" / "example.log", directory, grace=grace)


def wait_for_pids(program: Program, count: int) -> list[int]:
    """The first ``count`` numbers in the program's log."""
    assert wait_until(lambda: len(_pids(program)) >= count, 30), last_lines(program.log)
    return _pids(program)[:count]


def _pids(program: Program) -> list[int]:
    text = program.log.read_text() if program.log.exists() else ""
    return [int(line) for line in text.splitlines() if line.isdigit()]


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_program_is_started_again(supervisor: Supervisor, said: Said, tmp_path: Path) -> None:
    example = program(tmp_path, SLEEP)
    supervisor.start(example)
    os.kill(wait_for_pids(example, 1)[0], signal.SIGKILL)
    first, second = wait_for_pids(example, 2)
    assert first != second and alive(second)
    assert said == [("example", -signal.SIGKILL, processes.FIRST_DELAY)]


def test_a_program_that_keeps_ending_is_started_less_and_less_often(
    supervisor: Supervisor, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(processes, "LONGEST_DELAY", 0.03)
    supervisor.start(program(tmp_path, "sys.exit(3)"))
    assert wait_until(lambda: len(said) >= 4, 30)
    assert said[:4] == [("example", 3, delay) for delay in (0.01, 0.02, 0.03, 0.03)]


def test_stopping_lets_a_program_finish_and_starts_nothing_again(said: Said, tmp_path: Path) -> None:
    goodbye = "signal.signal(signal.SIGTERM, lambda *_: (said('bye'), sys.exit()))\n"
    example = program(tmp_path, goodbye + SLEEP)
    with Supervisor(said) as supervisor:
        supervisor.start(example)
        (pid,) = wait_for_pids(example, 1)
    assert last_lines(example.log).splitlines() == [str(pid), "bye"]
    assert said == []
    assert not alive(pid)


def test_a_program_that_will_not_stop_is_killed_after_its_grace(said: Said, tmp_path: Path) -> None:
    example = program(tmp_path, STUBBORN, grace=0.3)
    with Supervisor(said) as supervisor:
        supervisor.start(example)
        (pid,) = wait_for_pids(example, 1)
        began = time.monotonic()
    assert 0.3 <= time.monotonic() - began < 10
    assert not alive(pid)


def test_what_a_program_leaves_in_its_group_goes_with_it(said: Said, tmp_path: Path) -> None:
    child = "child = subprocess.Popen(['sleep', '600'])\nsaid(child.pid)\n"
    example = program(tmp_path, child + SLEEP)
    with Supervisor(said) as supervisor:
        supervisor.start(example)
        child_pid, pid = wait_for_pids(example, 2)
    assert wait_until(lambda: not alive(child_pid), 10)
    assert not alive(pid)


def test_an_interrupt_while_stopping_kills_at_once(tmp_path: Path) -> None:
    """The second Ctrl-C: nobody has to wait for a program's grace."""
    example = program(tmp_path, STUBBORN, grace=600)
    log, cwd, command = str(example.log), str(tmp_path), list(example.command)
    # What a shell starts in the background ignores interrupts, and hands that on.
    code = f"""
import signal, sys
from pathlib import Path
from controlplane.processes import Program, Supervisor
signal.signal(signal.SIGINT, signal.default_int_handler)
with Supervisor(print) as supervisor:
    supervisor.start(Program("example", tuple({command!r}), Path({log!r}), Path({cwd!r}), grace=600))
    sys.stdin.readline()
    print("stopping", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        (pid,) = wait_for_pids(example, 1)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "stopping\n"
        gone = _interrupt_until_gone(process)
        process.kill()  # so that a failure is told now and not when the grace is over
    assert gone
    assert not alive(pid)


def _interrupt_until_gone(process: subprocess.Popen[str]) -> bool:
    def gone() -> bool:
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    return wait_until(gone, 20, pause=0.5)


def test_programs_do_not_outlive_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    example = program(tmp_path, SLEEP)
    log, cwd, command = str(example.log), str(tmp_path), list(example.command)
    code = f"""
import time
from pathlib import Path
from controlplane.processes import Program, Supervisor
with Supervisor(print) as supervisor:
    supervisor.start(Program("example", tuple({command!r}), Path({log!r}), Path({cwd!r})))
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        (pid,) = wait_for_pids(example, 1)
        process.kill()
    assert wait_until(lambda: not alive(pid), 10)


def test_a_log_that_has_grown_is_put_aside_once(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("12345")
    put_aside(log, limit=5)
    assert log.read_text() == "12345"
    put_aside(log, limit=4)
    assert not log.exists()
    assert (tmp_path / "web.log.1").read_text() == "12345"


def test_the_end_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("".join(f"line {number}\n" for number in range(5000)))
    assert last_lines(log, 2) == "line 4998\nline 4999"
    assert last_lines(tmp_path / "none.log") == ""
