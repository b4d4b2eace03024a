"""What was observed on a node: one probe program, a pure reading of its answer, and defaults. Pure.

`PROBE` is a stdlib-only Python program that runs on the node and prints one JSON object; `probe_answer` finds
that object in its output, and `Facts.from_json` reads it, whatever is missing from it or unknown in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib.resources import files
from typing import Any, Self


def _program() -> str:
    """The pure readings and the program that uses them, as one text."""
    parts = [files("nodes.remote").joinpath(name).read_text() for name in ("readings.py", "probe.py")]
    imported = re.compile(r"^from __future__ import annotations$|^from nodes\.remote\.readings import \([^)]*\)$", re.M)
    return parts[0] + imported.sub("", parts[1])


PROBE = _program()


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi names it; memory in MiB."""

    index: int
    name: str
    uuid: str = ""
    memory_total_mib: int = 0
    memory_used_mib: int = 0
    memory_free_mib: int = 0
    bus: str = ""  # PCI address, as "3b:00"
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
class Python:
    """A Python on the node that environments may be made with."""

    version: str
    path: str
    has_venv: bool = False


@dataclass(frozen=True)
class Disk:
    """A disk, where it is mounted first."""

    mount: str
    device: str = ""
    total: int = 0
    free: int = 0


@dataclass(frozen=True)
class Xid:
    """An error that the NVIDIA driver reported since the node was started, and how often."""

    bus: str  # the GPU's PCI address
    xid: int
    count: int = 1


@dataclass(frozen=True)
class GpuPair:
    """How two GPUs reach each other, as `nvidia-smi topo` names it: "NV18", "PHB", "SYS"."""

    one: int
    other: int
    link: str


@dataclass(frozen=True)
class MigInstance:
    """A part that a GPU is split into."""

    gpu: int
    profile: str  # "3g.20gb"
    uuid: str = ""
    gigabytes: int = 0  # of memory, as its name says


@dataclass(frozen=True)
class Environment:
    """The Python environment that model servers run out of, as it is now: Quarterdeck's own, or an existing one."""

    path: str = ""
    python: str = ""  # "3.11.7"; empty: there is none
    packages: Mapping[str, str] = field(default_factory=dict)  # "vllm": "0.32.0+cpu"
    lock: str = ""  # fingerprint of the package set that was installed to the end; empty: not complete
    kind: str = ""  # "venv", "conda", "existing": somebody else's, which is used and never changed
    distributions: tuple[str, ...] = ()  # every package but pip, as "ray==2.60.0"
    fingerprint: str = ""  # of Python's version and all packages: the same where two environments are

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
    disks: tuple[Disk, ...] = ()
    python: str = ""  # version of the interpreter below
    python_path: str = ""
    python_has_venv: bool = False  # the module venv; ensurepip is not needed, pip is brought along
    python_has_headers: bool = False  # Python.h, which Triton compiles against
    pythons: tuple[Python, ...] = ()  # all that were found
    tools: tuple[str, ...] = ()  # programs that are there, of those that steps need
    package_manager: str = ""  # "apt-get", "dnf"; empty: neither
    glibc: str = ""
    hostname_address: str = ""  # what the host's own name resolves to there
    addresses: tuple[str, ...] = ()  # without loopback, the default route's first
    interfaces: tuple[Interface, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""  # why none could be asked, in English as the node said it
    gpu_pairs: tuple[GpuPair, ...] = ()
    mig_instances: tuple[MigInstance, ...] = ()
    gpu_processes: tuple[Process, ...] = ()
    gpu_xids: tuple[Xid, ...] = ()
    gpu_xid_error: str = ""  # why the kernel's log could not be read for them, as the node said it
    cuda: str = ""  # the newest that the driver can run
    accelerators: tuple[str, ...] = ()  # makers, with a driver or not: "nvidia", "amd", "ascend"
    accelerator_names: tuple[str, ...] = ()  # those of other makers that are known by name
    index: str = ""  # the package index that was asked, without a password; empty: none was
    index_error: str = ""  # why it does not answer; empty: it does, or was not asked
    blocks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # file → name → what Quarterdeck put there
    cluster_keys: Mapping[str, str] = field(default_factory=dict)  # cluster → public half of its key
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
        for name in ("cpu_flags", "addresses", "accelerators", "models", "listening"):
            known[name] = tuple(known.get(name, ()))
        known["gpu_pairs"] = tuple(GpuPair(*pair) for pair in known.get("gpu_pairs", ()) if len(pair) == 3)
        for name, kind in _LISTS.items():
            known[name] = tuple(kind(**_known(kind, item)) for item in known.get(name, ()))
        environment = _known(Environment, known.get("environment", {}))
        environment["distributions"] = tuple(environment.get("distributions", ()))
        known["environment"] = Environment(**environment)
        return cls(**known)

    @property
    def engine(self) -> str:
        """Which preset of packages fits the node: ``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"


_LISTS = {
    "interfaces": Interface, "gpus": Gpu, "gpu_processes": Process, "leftovers": Process, "pythons": Python,
    "disks": Disk, "gpu_xids": Xid, "mig_instances": MigInstance,
}  # fmt: skip


def _known(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``data`` the dataclass has a field for."""
    return {name: data[name] for name in _names(kind) if name in data}


@lru_cache(maxsize=16)
def _names(kind: type) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind))


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
