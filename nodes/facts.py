"""What was observed on a node: one probe program, a pure reading of its answer, and defaults. Pure.

`PROBE` is a stdlib-only Python program that runs on the node and prints one JSON object; `Facts.from_json` reads such an
object, whatever is missing from it.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Environment:
    """The Python environment that Quarterdeck keeps on the node, as it is now."""

    path: str = ""
    python: str = ""  # "3.11.7"; empty: there is none
    packages: Mapping[str, str] = field(default_factory=dict)  # "vllm": "0.32.0+cpu"
    lock: str = ""  # fingerprint of the package set that was installed to the end; empty: not complete


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
    python_has_venv: bool = False
    glibc: str = ""
    addresses: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""
    environment: Environment = field(default_factory=Environment)
    models: tuple[str, ...] = ()  # names of the complete model directories under <root>/models
    listening: tuple[int, ...] = ()  # TCP ports in use
    boot_id: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        for name in ("cpu_flags", "addresses", "models", "listening"):
            known[name] = tuple(known.get(name, ()))
        known["gpus"] = tuple(Gpu(**gpu) for gpu in known.get("gpus", ()))
        known["environment"] = Environment(**known.get("environment", {}))
        return cls(**known)

    @property
    def engine(self) -> str:
        """Which preset of packages fits the node: ``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"
