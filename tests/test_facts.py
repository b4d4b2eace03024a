"""Facts: what commands and files on a node say, read by pure functions, and kept whatever is missing.

A file in ``tests/facts`` is one captured output, the parser that reads it, and what it must find: a new GPU
is a new file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodes.facts import Environment, Facts, Gpu, GpuPair, Process, probe_answer
from nodes.remote import readings

CAPTURED = Path(__file__).parent / "facts"


def captured(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", sorted(CAPTURED.glob("*.json")), ids=lambda path: path.stem)
def test_a_captured_output_is_read_as_it_was_meant(path: Path) -> None:
    case = captured(path)
    output = case["output"] if "output" in case else "\n".join(case["lines"])
    found = getattr(readings, case["parser"])(output)
    assert json.loads(json.dumps(found)) == case["facts"]


def test_a_real_nodes_answer_becomes_facts() -> None:
    facts = Facts.from_json(captured(CAPTURED / "node" / "h200x2.json"))
    assert (facts.os, facts.cpus, facts.python, facts.glibc) == ("Ubuntu 24.04.3 LTS", 32, "3.12.3", "2.39")
    assert facts.addresses == ("192.0.2.2", "fd00::2")
    assert [interface.name for interface in facts.interfaces] == ["eth0", "eth0"]
    assert [gpu.memory_used_mib for gpu in facts.gpus] == [4, 2667]
    assert facts.gpu_processes[0].gpu_uuid == facts.gpus[1].uuid
    assert facts.gpu_pairs == (GpuPair(0, 1, "NV18"),)
    assert facts.engine == "cuda"


def test_two_environments_with_the_same_packages_have_one_fingerprint() -> None:
    names = ["Ray-2.60.0.dist-info", "typing_extensions-4.15.0.dist-info", "vllm", "broken.dist-info"]
    found = readings.parse_distributions(names)
    assert found == ["ray==2.60.0", "typing-extensions==4.15.0"]
    fingerprint = readings.set_fingerprint("3.11.7", found)
    assert fingerprint == readings.set_fingerprint("3.11.7", reversed(found))
    assert fingerprint != readings.set_fingerprint("3.11.8", found)
    assert fingerprint != readings.set_fingerprint("3.11.7", found[1:])


@pytest.mark.parametrize("text", ["00000000:3B:00.0", "0000:3b:00", "3b:00", "0000:3b:00.0 "])
def test_a_pci_address_is_the_same_however_it_is_written(text: str) -> None:
    assert readings.short_bus(text) == "3b:00"


def test_a_node_that_told_nothing_still_has_facts() -> None:
    assert Facts.from_json({}) == Facts()
    assert Facts().engine == "cpu"
    assert Facts().environment == Environment()


def test_a_newer_probe_may_say_more_than_is_known() -> None:
    gpu, leftover = {"index": 0, "name": "A", "colour": "green"}, {"pid": 7, "mood": "bad"}
    facts = Facts.from_json({"gpus": [gpu], "leftovers": [leftover], "moon": 1})
    assert facts.gpus == (Gpu(0, "A"),)
    assert facts.leftovers == (Process(7),)


def test_facts_are_values_that_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Facts().home = "/elsewhere"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("clock", "offset"), [(100.5, 0.0), (90.0, -10.0), (131.0, 30.0)], ids=["between", "behind", "ahead"]
)
def test_the_clock_is_compared_with_ours_before_and_after(clock: float, offset: float) -> None:
    answer = probe_answer(json.dumps({"clock": clock}), sent=100.0, received=101.0)
    assert Facts.from_json(answer).clock_offset == pytest.approx(offset)


def test_what_a_login_prints_around_the_answer_is_passed_over() -> None:
    output = 'Welcome to te1\n{"home": "/root", "clock": 0}\nlogout\n'
    assert probe_answer(output, 0, 0)["home"] == "/root"


@pytest.mark.parametrize("output", ["", "Welcome to te1\n", '{"home": "/ro'])
def test_an_output_without_an_answer_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match=r"no answer|Unterminated"):
        probe_answer(output, 0, 0)


def test_the_best_python_is_a_supported_one_that_makes_environments() -> None:
    def candidate(version: str, venv: bool = True) -> dict[str, Any]:
        return {"python": version, "python_path": f"/usr/bin/python{version}", "python_has_venv": venv}

    def chosen(*candidates: dict[str, Any]) -> str:
        return str(readings.choose_python(candidates).get("python", ""))

    assert chosen(candidate("3.9.18"), candidate("3.11.7"), candidate("3.12.1")) == "3.11.7"
    assert chosen(candidate("3.12.1", venv=False), candidate("3.11.7")) == "3.11.7"
    assert chosen(candidate("3.15.0"), candidate("3.12.9")) == "3.12.9"
    assert chosen(candidate("3.8.10")) == "3.8.10"
    assert chosen() == ""


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("vllm serve /m --api-key s3cret --port 8000", "vllm serve /m --api-key ••• --port 8000"),
        ("run --hf-token=hf_abc", "run --hf-token=•••"),
        ("python3 train.py --tokens 5", "python3 train.py --tokens •••"),
        ("sleep 60", "sleep 60"),
        ("x" * 500, "x" * 200),
    ],
)
def test_secrets_in_other_peoples_command_lines_are_masked(command: str, shown: str) -> None:
    assert readings.shown_command(command) == shown
