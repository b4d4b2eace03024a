"""What was observed on a node: one probe program, a pure reading of its answer, and defaults. Pure.

`PROBE` is a stdlib-only Python program that runs on the node and prints one JSON object; `probe_answer` finds
that object in its output, and `Facts.from_json` reads it, whatever is missing from it or unknown in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import Any, Self

PROBE = files("nodes.remote").joinpath("probe.py").read_text()


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi names it; memory in MiB."""

    index: int
    name: str
    uuid: str = ""
    memory_total_mib: int = 0
    memory_used_mib: int = 0
    driver: str = ""
    compute_capability: str = ""
    mig: bool = False  # split into instances
    ecc_errors: int = 0  # uncorrected, since the driver was loaded


@dataclass(frozen=True)
class Process:
    """A program that runs on the node and matters: it holds GPU memory, or it belongs to a Ray or vLLM."""

    pid: int
    user: str = ""  # empty where it cannot be seen, as from inside a container
    command: str = ""  # secrets masked
    ours: bool = False  # runs out of Quarterdeck's own environment
    gpu_uuid: str = ""
    used_mib: int = 0
    job: str = ""  # the id of the job that it belongs to, of whatever Quarterdeck started it
    started: int = 0  # clock ticks after the boot: with the pid, it names a process for good


@dataclass(frozen=True)
class Interface:
    """An address and the network interface that has it."""

    name: str
    address: str
    mbits: int = 0  # link speed; 0: not known, as of virtual ones


@dataclass(frozen=True)
class Environment:
    """The Python environment that Quarterdeck keeps on the node, as it is now."""

    path: str = ""
    python: str = ""  # "3.11.7"; empty: there is none
    packages: Mapping[str, str] = field(default_factory=dict)  # "vllm": "0.32.0+cpu"
    lock: str = ""  # fingerprint of the package set that was installed to the end; empty: not complete

    @property
    def verified(self) -> bool:
        """Whether the whole package set is there and was seen to work (see `nodes.recipes.python_env`)."""
        return self.lock.endswith(" verified")


@dataclass(frozen=True)
class Facts:
    """Everything known about a node. Sizes in bytes; empty where it could not be observed."""

    home: str = ""
    user: str = ""
    uid: int = -1
    hostname: str = ""
    os: str = ""
    kernel: str = ""
    machine: str = ""
    cpus: int = 0
    cpu_model: str = ""
    cpu_flags: tuple[str, ...] = ()
    memory_total: int = 0
    memory_available: int = 0
    shm_total: int = 0
    disk_free: int = 0
    disk_total: int = 0
    python: str = ""  # version of the interpreter below
    python_path: str = ""
    python_has_venv: bool = False  # the module venv; ensurepip is not needed, pip is brought along
    python_has_headers: bool = False  # Python.h, which Triton compiles against
    glibc: str = ""
    hostname_address: str = ""  # what the host's own name resolves to there
    addresses: tuple[str, ...] = ()  # without loopback, the default route's first
    interfaces: tuple[Interface, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""  # why none could be asked, in English as the node said it
    gpu_links: tuple[str, ...] = ()  # as `nvidia-smi topo` names them: "NV18", "PHB", "SYS"
    gpu_processes: tuple[Process, ...] = ()
    accelerators: tuple[str, ...] = ()  # makers, with a driver or not: "nvidia", "amd", "ascend"
    environment: Environment = field(default_factory=Environment)
    models: tuple[str, ...] = ()  # names of the complete model directories under <root>/models
    listening: tuple[int, ...] = ()  # TCP ports in use
    leftovers: tuple[Process, ...] = ()  # of Ray and vLLM, ours and other people's
    boot_id: str = ""
    clock: float = 0.0  # seconds since 1970, there
    clock_offset: float = 0.0  # seconds that the node is ahead of the control plane
    errors: Mapping[str, str] = field(default_factory=dict)  # what could not be observed → why

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        known = _known(cls, data)
        for name in ("cpu_flags", "addresses", "gpu_links", "accelerators", "models", "listening"):
            known[name] = tuple(known.get(name, ()))
        for name, kind in _LISTS.items():
            known[name] = tuple(kind(**_known(kind, item)) for item in known.get(name, ()))
        known["environment"] = Environment(**_known(Environment, known.get("environment", {})))
        return cls(**known)

    @property
    def engine(self) -> str:
        """Which preset of packages fits the node: ``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"


_LISTS = {"interfaces": Interface, "gpus": Gpu, "gpu_processes": Process, "leftovers": Process}


def _known(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``data`` the dataclass has a field for."""
    return {item.name: data[item.name] for item in fields(kind) if item.name in data}


def probe_answer(output: str, sent: float, received: float) -> dict[str, Any]:
    """What `PROBE` printed, with the clock offset, for keeping and for `Facts.from_json`.

    ``sent`` and ``received`` are our own clock's seconds when the probe was started and had answered; a clock
    that lies between the two counts as right. What a login printed around the answer is passed over. Raises
    ValueError when there is no answer in ``output``.
    """
    line = next((line for line in reversed(output.splitlines()) if line.startswith('{"')), "")
    data = json.loads(line) if line else None
    if not isinstance(data, dict):
        raise ValueError("the probe printed no answer")
    clock = data.get("clock")
    if clock:
        data["clock_offset"] = clock - min(max(clock, sent), received)
    return data
