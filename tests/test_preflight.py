"""Preflight: what is wrong with a node, told before anything starts there.

The node is a real one (two H200, one of them used by somebody's program), changed in one thing at a time.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodes import gpu_words
from nodes.facts import Environment, Facts, Gpu, GpuPair, MigInstance, Process, Xid
from nodes.preflight import GIB, MIB, Finding, Severity, findings

REAL = Facts.from_json(json.loads((Path(__file__).parent / "facts" / "node" / "h200x2.json").read_text()))
GOOD = replace(REAL, hostname_address="192.0.2.2", gpu_processes=(), gpus=(replace(REAL.gpus[0]),))
CPU = replace(GOOD, gpus=(), accelerators=(), gpu_error="nvidia-smi is not installed")


def only(facts: Facts) -> Finding:
    (finding,) = findings(facts)
    return finding


def changed(facts: Facts, **values: Any) -> Facts:
    return replace(facts, **values)


def with_gpu(**values: Any) -> Facts:
    return replace(GOOD, gpus=(replace(GOOD.gpus[0], **values),))


def test_a_good_node_has_nothing_wrong() -> None:
    assert findings(GOOD) == []
    assert findings(CPU) == []


def test_a_node_that_was_not_asked_yet_has_nothing_wrong() -> None:
    assert findings(Facts()) == []


def test_what_could_not_be_observed_is_not_held_against_the_node() -> None:
    unseen = Facts(hostname="te1", hostname_address="10.0.0.1", python="3.12.3", python_has_venv=True)
    assert findings(unseen) == []


def test_the_real_node_is_warned_about_its_name_and_the_program_on_its_gpu() -> None:
    held, name = findings(REAL)
    assert {held.severity, name.severity} == {Severity.WARNS}
    assert held.what.startswith("Process 544 of root holds 2658 MiB of GPU 1: python3 -c")
    assert held.command == "ps -fp 544"
    assert name.what == (
        "The node's own name, vm, resolves to 127.0.0.1. Workers on other nodes would be sent there."
    )
    assert "once the node shares a cluster with others" in name.next_step
    assert name.command == "192.0.2.2 vm"  # a line for /etc/hosts


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (changed(CPU, python="", python_path=""), "There is no Python that works"),
        (changed(CPU, python="3.8.10"), "The newest Python on this node is 3.8.10"),
        (changed(CPU, python_has_venv=False), "cannot make environments"),
        (changed(CPU, disk_free=7 * GIB), "7.0 GiB of disk are free"),
        (changed(GOOD, disk_free=24 * GIB), "24.0 GiB of disk are free"),
        (changed(CPU, cpu_flags=("avx512f",)), "has no AVX2"),
        (with_gpu(driver="535.104.05"), "The NVIDIA driver is 535.104.05"),
        (with_gpu(compute_capability="7.0"), "is too old: it has compute capability 7.0"),
        (changed(REAL, gpu_processes=(), hostname_address="192.0.2.2", shm_total=64 * MIB,
                 gpus=(REAL.gpus[0], replace(REAL.gpus[0], index=1))), "has 64 MiB"),
        (changed(CPU, accelerators=("nvidia",), gpu_error="nvidia-smi failed: no X."), "failed: no X."),
        (changed(CPU, machine="riscv64"), "processors of the kind riscv64"),
        (changed(CPU, os="CentOS Linux 7", glibc="2.17"), "CentOS Linux 7 is too old"),
        (changed(CPU, index="https://m.invalid/simple", index_error="timed out"), "m.invalid/simple does not answer"),
    ],
)  # fmt: skip
def test_what_makes_preparing_fail_blocks(facts: Facts, said: str) -> None:
    finding = only(facts)
    assert finding.severity is Severity.BLOCKS
    assert said in finding.what
    assert finding.next_step


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (changed(CPU, memory_total=3 * GIB), "This node has 3.0 GiB of memory"),
        (changed(CPU, shm_total=64 * MIB), "has 64 MiB"),
        (changed(GOOD, python_has_headers=False), "The header files of Python 3.12.3 are missing"),
        (changed(CPU, hostname_address="127.0.1.1"), "vm, resolves to 127.0.1.1"),
        (changed(CPU, hostname_address=""), "does not resolve to any address"),
        (changed(CPU, clock_offset=7.2), "The clock is 7 s ahead."),
        (changed(CPU, clock_offset=-3600.0), "The clock is 3600 s behind."),
        (changed(CPU, accelerators=("amd",)), "an accelerator by AMD, which Quarterdeck does not"),
        (changed(CPU, accelerators=("ascend",)), "an accelerator by Huawei Ascend"),
        (with_gpu(mig=True), "is split into instances (MIG), which is not supported yet: none is made yet."),
        (changed(with_gpu(mig=True), mig_instances=(
            *(MigInstance(0, "3g.20gb", uuid, 20) for uuid in "ab"), MigInstance(0, "1g.5gb", "c", 5),
            MigInstance(1, "1g.5gb", "d", 5))),
         "not supported yet: 2 × 3g.20gb with 20 GB each, 1g.5gb with 5 GB."),
        (with_gpu(ecc_errors=3), "has had 3 memory errors"),
        (changed(with_gpu(bus="3b:00"), gpu_xids=(Xid("3b:00", 79, 2),)),
         "GPU 0 has reported the error Xid 79, 2 times since the start: it fell off the bus"),
        (changed(GOOD, gpu_xids=(Xid("af:00", 31),)), "GPU af:00 has reported the error Xid 31"),
        (changed(GOOD, package_manager="apt-get", tools=("git",)), "There is no C compiler"),
        (changed(CPU, accelerators=("amd",), accelerator_names=("AMD Instinct MI300X",) * 2),
         "an accelerator by 2 × AMD Instinct MI300X, which Quarterdeck does not support yet"),
        (with_gpu(memory_used_mib=2048), "2048 MiB of GPU 0 are in use by a program that cannot be seen"),
        (changed(CPU, leftovers=(Process(7, "ann", "ray::x"), Process(9, "bob", "raylet"))),
         "process 7, 9 of ann, bob"),
    ],
)  # fmt: skip
def test_what_only_makes_things_worse_warns(facts: Facts, said: str) -> None:
    finding = only(facts)
    assert finding.severity is Severity.WARNS
    assert said in finding.what
    assert finding.next_step


@pytest.mark.parametrize(
    "facts",
    [
        changed(CPU, disk_free=8 * GIB),
        changed(CPU, disk_free=1 * GIB, environment=Environment(lock="abc verified")),
        changed(CPU, memory_total=4 * GIB, shm_total=512 * MIB, clock_offset=5.0),
        changed(CPU, machine="aarch64", cpu_flags=()),
        changed(CPU, hostname_address="", errors={"resolution": "TimeoutError"}),
        changed(GOOD, cpu_flags=(), accelerators=("amd", "nvidia")),
        changed(GOOD, package_manager="apt-get", tools=("cc", "git")),
        changed(CPU, package_manager="dnf"),
        with_gpu(driver="580.65.06", compute_capability="7.5"),
        with_gpu(driver="", compute_capability="", memory_used_mib=1023),
        changed(GOOD, leftovers=(Process(7, "root", "ray::x", ours=True),)),
        changed(GOOD, gpu_processes=(Process(7, ours=True, gpu_uuid=GOOD.gpus[0].uuid, used_mib=90_000),)),
    ],
)
def test_what_is_just_good_enough_is_not_mentioned(facts: Facts) -> None:
    assert findings(facts) == []


def test_an_old_driver_is_told_once_for_all_gpus() -> None:
    gpus = tuple(
        Gpu(index, "NVIDIA A10", driver="535.104.05", compute_capability="8.6") for index in range(4)
    )
    assert only(changed(GOOD, gpus=gpus)).command == "sudo apt-get install nvidia-driver-580-server"


def test_commands_fit_the_system() -> None:
    assert only(changed(CPU, python_has_venv=False)).command == "sudo apt-get install python3-venv"
    assert only(changed(CPU, python_has_venv=False, os="Rocky Linux 9.4")).command == ""


def test_a_name_from_the_node_is_quoted_in_the_command() -> None:
    finding = only(changed(CPU, hostname="te1; reboot", hostname_address="127.0.1.1"))
    assert finding.command == "192.0.2.2 'te1; reboot'"


def test_a_percent_sign_from_the_node_stays_what_it_is() -> None:
    process = Process(7, "ann", "train --share 100%s", gpu_uuid=GOOD.gpus[0].uuid, used_mib=10)
    assert only(changed(GOOD, gpu_processes=(process,))).what.endswith("GPU 0: train --share 100%s")


def test_what_blocks_comes_first() -> None:
    bad = changed(CPU, clock_offset=60.0, memory_total=1 * GIB, python="3.8.10", hostname_address="127.0.1.1")
    severities = [finding.severity for finding in findings(bad)]
    assert severities == [Severity.BLOCKS, Severity.WARNS, Severity.WARNS, Severity.WARNS]


# --- GPUs in words ----------------------------------------------------------------------------------------------


def paired(*links: str) -> Facts:
    """Four GPUs with these links, in the order 0–1, 0–2, 0–3, 1–2, 1–3, 2–3."""
    pairs = itertools.combinations(range(4), 2)
    return changed(GOOD, gpu_pairs=tuple(GpuPair(*pair, link) for pair, link in zip(pairs, links, strict=True)))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (paired(*["NV18"] * 6), "NVLink, 18 links: all 6 pairs"),
        (paired("NV4", "SYS", "SYS", "SYS", "SYS", "NV1"),
         "NVLink, 1 link: 2–3\nNVLink, 4 links: 0–1\nfrom socket to socket (SYS): 0–2, 0–3, 1–2, 1–3"),
        (changed(GOOD, gpu_pairs=(GpuPair(0, 1, "NV18"), GpuPair(0, 2, "NEW"))), "NEW: 0–2\nNVLink, 18 links: 0–1"),
        (changed(GOOD, gpu_pairs=()), ""),
        (changed(GOOD, gpu_pairs=(GpuPair(0, 1, "PHB"),)), "PCIe, by way of the processor (PHB): 0–1"),
        (changed(GOOD, gpu_pairs=(*(GpuPair(0, n, "SYS") for n in range(1, 15)), GpuPair(1, 2, "PIX"))),
         "one PCIe switch (PIX): 1–2\nfrom socket to socket (SYS): 14 of 15 pairs"),
    ],
)  # fmt: skip
def test_links_between_gpus_are_told_pair_by_pair(facts: Facts, said: str) -> None:
    assert gpu_words.links(facts) == said


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (changed(GOOD, cuda="13.0"), "none since the start"),
        (changed(GOOD, uid=0, gpu_xid_error="no dmesg"), "the kernel's log cannot be read (no dmesg)"),
        (changed(GOOD, uid=1000, gpu_xid_error="dmesg: Operation not permitted"),
         "not readable without root (dmesg: Operation not permitted)"),
        (changed(with_gpu(bus="3b:00"), gpu_xids=(Xid("3b:00", 79, 2), Xid("af:00", 31))),
         "GPU 0: 2 × Xid 79, GPU af:00: 1 × Xid 31"),
    ],
)  # fmt: skip
def test_whether_gpus_reported_errors_is_told_or_that_nobody_may_know(facts: Facts, said: str) -> None:
    assert gpu_words.xids(facts) == said


def test_what_gpus_are_split_into_is_told_for_each() -> None:
    facts = changed(GOOD, gpus=tuple(replace(GOOD.gpus[0], index=n, mig=n < 2) for n in range(3)),
                    mig_instances=(MigInstance(0, "3g.20gb", "a", 20),))
    assert gpu_words.split(facts) == "GPU 0: 3g.20gb with 20 GB\nGPU 1: no instance"
