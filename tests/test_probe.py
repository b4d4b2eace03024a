"""The probe: the real program, run on this machine as it is run on a node."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodes.facts import PROBE, Facts, GpuPair
from nodes.remote import probe

CAPTURED = Path(__file__).parent / "facts"


def asked(root: Path | str, *, python: str = sys.executable, path: str = "") -> dict[str, Any]:
    """What the probe answers, run as over SSH; ``path`` is searched for programs before the usual places."""
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    argv = [python, "-", str(root)]
    done = subprocess.run(argv, input=PROBE, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@contextmanager
def running(*argv: str, executable: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, executable=executable) as program:
        try:
            yield program
        finally:
            program.kill()


def stand_in(folder: Path, script: str) -> str:
    """A program called nvidia-smi in a folder for the PATH."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(folder)


def replaying(folder: Path, pid: int) -> str:
    """A stand-in that answers as two captured H200 did; ``pid`` is the program that holds memory."""
    for name in ("h200x2-used", "h200x2-apps", "h200x2-topology"):
        text = "\n".join(json.loads((CAPTURED / f"{name}.json").read_text())["lines"])
        (folder / name).write_text(text.replace("544", str(pid)))
    return stand_in(
        folder,
        f'case "$1" in --query-gpu=*) cat {folder}/h200x2-used;; topo) cat {folder}/h200x2-topology;; '
        f"*) cat {folder}/h200x2-apps;; esac",
    )


def test_it_tells_what_this_machine_is(tmp_path: Path) -> None:
    began = time.monotonic()
    answer = asked(tmp_path)
    # A second when alone; this machine may be busy with other tests.
    assert time.monotonic() - began < 5
    assert answer["errors"] == {}
    facts = Facts.from_json(answer)
    assert facts.hostname == socket.gethostname()
    assert (facts.uid, facts.home) == (os.getuid(), str(Path.home()))
    assert facts.cpus == len(os.sched_getaffinity(0))
    assert facts.memory_total >= facts.memory_available > 0
    assert facts.disk_free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert facts.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert abs(facts.clock - time.time()) < 60
    assert tuple(map(int, facts.python.split(".")[:2])) >= (3, 11)
    assert Path(facts.python_path).exists()


def oldest_python() -> str | None:
    """Where a Python 3.8 is, if this machine has one."""
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.8.*/bin/python3"))
    return str(pyenv[-1]) if pyenv else shutil.which("python3.8")


@pytest.mark.skipif(oldest_python() is None, reason="there is no Python 3.8 here")
def test_it_runs_on_python_3_8(tmp_path: Path) -> None:
    assert asked(tmp_path, python=str(oldest_python()))["errors"] == {}


def test_it_is_written_in_the_syntax_of_python_3_8() -> None:
    ast.parse(PROBE, feature_version=(3, 8))


def test_it_is_short_enough_for_one_argument() -> None:
    assert len(PROBE.encode()) < 128 * 1024  # Linux refuses longer ones


def test_a_listening_port_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port in asked(tmp_path)["listening"]
    assert port not in asked(tmp_path)["listening"]


def test_the_environment_is_read_without_importing_anything(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    site = next((tmp_path / "env").glob("lib/python3*/site-packages"))
    (site / "vllm-0.32.0+cpu.dist-info").mkdir()
    (site / "vllm").mkdir()
    (site / "vllm" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "env" / "quarterdeck.lock").write_text("abc123\n")
    found = Facts.from_json(asked(tmp_path)).environment
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.packages == {"vllm": "0.32.0+cpu"}
    assert (found.path, found.lock) == (str(tmp_path / "env"), "abc123")


def test_an_environment_whose_python_is_gone_has_none(tmp_path: Path) -> None:
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").symlink_to(tmp_path / "removed")
    assert asked(tmp_path)["environment"]["python"] == ""


def test_only_complete_models_are_named(tmp_path: Path) -> None:
    for name in ("qwen", "llama.partial", "empty"):
        (tmp_path / "models" / name).mkdir(parents=True)
    for name in ("qwen", "llama.partial"):
        (tmp_path / "models" / name / "config.json").write_text("{}")
    assert asked(tmp_path)["models"] == ["qwen"]


def test_a_root_that_does_not_exist_yet_is_no_obstacle(tmp_path: Path) -> None:
    answer = asked(tmp_path / "not" / "yet")
    assert answer["errors"] == {}
    assert answer["disk_total"] == shutil.disk_usage(tmp_path).total


def test_ray_and_vllm_left_over_are_found_and_told_from_ours(tmp_path: Path) -> None:
    ours = tmp_path / "env" / "bin" / "sleep"
    ours.parent.mkdir(parents=True)
    shutil.copy(str(shutil.which("sleep")), ours)
    with (
        running("/opt/ray/raylet", "60", executable=shutil.which("sleep")) as theirs,
        running("gcs_server", "60", executable=str(ours)) as own,
        running("monitor.py", "60", executable=shutil.which("sleep")) as unrelated,
    ):
        found = {one.pid: one for one in Facts.from_json(asked(tmp_path)).leftovers}
    assert (found[theirs.pid].command, found[theirs.pid].ours) == ("/opt/ray/raylet 60", False)
    assert found[own.pid].ours is True
    assert unrelated.pid not in found


def test_gpus_and_who_holds_their_memory(tmp_path: Path) -> None:
    with running("sleep", "60") as holder:
        facts = Facts.from_json(asked(tmp_path, path=replaying(tmp_path, holder.pid)))
    assert [gpu.name for gpu in facts.gpus] == ["NVIDIA H200", "NVIDIA H200"]
    assert facts.gpu_pairs == (GpuPair(0, 1, "NV18"),)
    process = facts.gpu_processes[0]
    assert (process.pid, process.command, process.used_mib) == (holder.pid, "sleep 60", 2658)
    assert (process.ours, facts.gpu_error) == (False, "")


def test_a_program_seen_only_by_the_driver_is_named_by_its_number(tmp_path: Path) -> None:
    with running("true") as gone:
        gone.wait()
        facts = Facts.from_json(asked(tmp_path, path=replaying(tmp_path, gone.pid)))
    assert (facts.gpu_processes[0].pid, facts.gpu_processes[0].user) == (gone.pid, "")


def test_a_field_that_an_older_nvidia_smi_does_not_know_is_left_out(tmp_path: Path) -> None:
    script = (
        'case "$1" in *compute_cap*) echo \'Field "compute_cap" is not a valid field to query.\'; exit 2;; '
        "--query-gpu=*) printf 'index, name\\n0, Tesla V100\\n';; *) echo 'pid';; esac"
    )
    facts = Facts.from_json(asked(tmp_path, path=stand_in(tmp_path, script)))
    assert [gpu.name for gpu in facts.gpus] == ["Tesla V100"]


@pytest.mark.parametrize(("dmesg", "journalctl", "error", "xids"), [
    ("echo 'NVRM: Xid (PCI:0000:3b:00): 79, pid=1'", "exit 1", "", 1),
    ("echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1",
     "echo 'NVRM: Xid (PCI:0000:3b:00): 31, pid=1'", "", 1),
    ("exit 1", "echo 'Hint: You are currently not seeing messages from other users.' >&2", "Hint: You are", 0),
    ("exit 1", "echo 'No journal files were opened.' >&2; exit 1", "No journal files", 0),
])
def test_errors_of_gpus_that_only_root_may_read_are_not_called_none(
    tmp_path: Path, dmesg: str, journalctl: str, error: str, xids: int
) -> None:
    folder = stand_in(tmp_path, "printf 'index, name\\n0, Tesla V100\\n'")
    for name, script in (("dmesg", dmesg), ("journalctl", journalctl)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    facts = Facts.from_json(asked(tmp_path, path=folder))
    assert len(facts.gpu_xids) == xids
    assert facts.gpu_xid_error.startswith(error)
    assert bool(facts.gpu_xid_error) == bool(error)


def test_a_driver_that_does_not_answer_is_said_in_its_own_words(tmp_path: Path) -> None:
    words = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    answer = asked(tmp_path, path=stand_in(tmp_path, f'echo "{words}"; exit 9'))
    assert (answer["gpus"], answer["gpu_error"]) == ([], f"nvidia-smi failed: {words}")


def test_a_fact_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    script = "printf 'index, name\\nnonsense, Tesla V100\\n'"
    answer = asked(tmp_path, path=stand_in(tmp_path, script))
    assert set(answer["errors"]) == {"gpus"}
    assert answer["hostname"] == socket.gethostname()


def test_a_program_that_hangs_is_given_up(tmp_path: Path) -> None:
    folder = stand_in(tmp_path, "sleep 60 & sleep 60")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        probe.ask(f"{folder}/nvidia-smi", timeout=0.2)
    assert time.monotonic() - began < 10


# --- where packages come from -----------------------------------------------------------------------------------


@pytest.fixture
def no_pip_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is told nothing, here or in the user's files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(probe, "PIP_PLACES", (tmp_path / "pip.conf",))


def index(tmp_path: Path, **options: str) -> dict[str, Any]:
    probe.OPTIONS.clear()
    probe.OPTIONS.update(options)
    return probe.index(tmp_path)


def test_an_index_that_does_not_answer_is_told_without_its_password(tmp_path: Path, no_pip_settings: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = index(tmp_path, index=f"http://u:secret@127.0.0.1:{port}/simple")
    assert found == {"index": f"http://127.0.0.1:{port}/simple", "index_error": "[Errno 111] Connection refused"}


def test_an_index_that_never_answers_delays_nothing_for_long(
    tmp_path: Path, no_pip_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "INDEX_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = index(tmp_path, index=f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
    assert found["index_error"] in ("timed out", "no answer")


def test_pips_own_index_is_asked_where_nobody_named_another(tmp_path: Path, no_pip_settings: None) -> None:
    (tmp_path / "pip").mkdir()
    assert index(tmp_path, index="", default_index=f"file://{tmp_path}")["index_error"] == ""
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = file:///nowhere/simple\n")
    assert index(tmp_path, index="", default_index=f"file://{tmp_path}")["index"] == "file:///nowhere/simple"


def test_nothing_is_asked_where_pip_has_another_source_or_all_is_there(tmp_path: Path, no_pip_settings: None) -> None:
    assert index(tmp_path) == {}, "nobody wants to know"
    (tmp_path / "env").mkdir()
    (tmp_path / "env/quarterdeck.lock").write_text("cpu-1 verified\n")
    assert index(tmp_path, index="http://127.0.0.1:1/simple") == {}
    (tmp_path / "env/quarterdeck.lock").unlink()
    (tmp_path / "pip.conf").write_text("[global]\nfind-links = /opt/wheels\n")
    assert index(tmp_path, index="http://127.0.0.1:1/simple") == {}


def test_blocks_in_the_users_files_and_the_clusters_key_are_seen(tmp_path: Path, no_pip_settings: None) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("# >>> quarterdeck c >>>\nHost te1\n# <<< quarterdeck c <<<\n")
    (tmp_path / ".ssh/quarterdeck_a.b.pub").write_text("ssh-ed25519 AAAA\n")
    (tmp_path / ".ssh/quarterdeck_a.b").touch()
    (tmp_path / ".ssh/quarterdeck_lost.pub").write_text("ssh-ed25519 BBBB\n")
    found = probe.kept_blocks(tmp_path)
    assert found["blocks"]["config"] == {"c": "Host te1\n"}
    assert found["cluster_keys"] == {"a.b": "ssh-ed25519 AAAA"}


def test_of_shims_only_the_users_python3_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("shims", "bin"):
        (tmp_path / folder).mkdir()
        for name in ("python3", "python3.9", "python3-config"):
            (tmp_path / folder / name).write_text("#!/bin/sh\n")
            (tmp_path / folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/shims:{tmp_path}/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = [path for path in probe.python_candidates() if path.is_relative_to(tmp_path)]
    assert [str(path.relative_to(tmp_path)) for path in found] == ["shims/python3", "bin/python3", "bin/python3.9"]
