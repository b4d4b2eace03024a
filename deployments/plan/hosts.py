"""Hosts and their GPUs as the plan sees them: memory that vLLM can have, and how fast each GPU is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from django.utils.translation import gettext as _

from controlplane.problems import Problem

if TYPE_CHECKING:
    from nodes.facts import Facts

MIB = 1 << 20
GIB = 1 << 30

#: vLLM's own default since 0.21; values above about 0.95 fail because the CUDA context comes on top.
DEFAULT_UTILIZATION = 0.92
#: What a worker takes before vLLM looks at the free memory: the CUDA context, and NCCL's buffers when it is
#: not alone.
#: Measured on H200: 138.8 of 139.8 GiB were free at that moment with four workers.
CONTEXT_BYTES = int(0.6 * GIB)
NCCL_BYTES = int(0.4 * GIB)


class BadInput(Problem):
    """What was typed or read cannot be understood; one sentence says what to correct."""


class Speed(NamedTuple):
    """Bytes a second from memory, 16-bit operations a second, bytes a second one way to the next GPU."""

    memory: float
    compute: float
    link: float


# From the makers' data sheets: GB/s, dense bf16 (or fp16) TFLOP/s, NVLink GB/s one way (0: PCIe). First match
# wins.
_KNOWN: tuple[tuple[str, int, int, int], ...] = (
    ("B300", 8000, 2250, 900),
    ("B200", 8000, 2250, 900),
    ("H200 NVL", 4800, 835, 450),
    ("H200", 4800, 989, 450),
    ("GH200", 4000, 989, 450),
    ("H100 NVL", 3900, 835, 300),
    ("H100 PCIe", 2000, 756, 0),
    ("H100", 3350, 989, 450),
    ("H800", 3350, 989, 200),
    ("H20", 4000, 148, 450),
    ("A100-SXM4-80", 2039, 312, 300),
    ("A100-SXM4-40", 1555, 312, 300),
    ("A100-SXM", 1555, 312, 300),
    ("A100 80GB", 1935, 312, 0),
    ("A100", 1555, 312, 0),
    ("A800", 2039, 312, 200),
    ("A6000", 768, 155, 0),
    ("A5000", 768, 111, 0),
    ("A40", 696, 150, 0),
    ("A30", 933, 165, 0),
    ("A16", 200, 18, 0),
    ("A10G", 600, 70, 0),
    ("A10", 600, 125, 0),
    ("A2", 200, 18, 0),
    ("L40S", 864, 362, 0),
    ("L40", 864, 181, 0),
    ("L4", 300, 121, 0),
    ("RTX PRO 6000", 1792, 500, 0),
    ("RTX 6000 Ada", 960, 364, 0),
    ("RTX 5090", 1792, 210, 0),
    ("RTX 4090", 1008, 165, 0),
    ("RTX 3090", 936, 71, 0),
    ("V100-SXM2", 900, 125, 150),
    ("V100", 900, 112, 0),
    ("T4", 320, 65, 0),
)
_UNKNOWN = (600, 100, 0)
_PCIE = 20e9  # bytes a second one way, PCIe 4 x16 less protocol


@cache
def speed_of(name: str) -> Speed:
    """Speed by product name; an unknown GPU counts as a modest one, so as not to be preferred by mistake."""
    row = next((row[1:] for row in _KNOWN if row[0].lower() in name.lower()), _UNKNOWN)
    return Speed(row[0] * 1e9, row[1] * 1e12, row[2] * 1e9 or _PCIE)


@lru_cache(maxsize=1024)
def _whole_percent(total: int, taken: int) -> float:
    """The share that is left of ``total``, rounded down to a hundredth."""
    return max(0.0, math.floor(100 * (total - taken) / total) / 100)


@dataclass(frozen=True)
class GpuSpec:
    """One GPU as nvidia-smi names it. ``memory_used_mib`` is what other processes hold."""

    index: int
    name: str
    memory_total_mib: int
    memory_used_mib: int = 0
    compute_capability: str = ""

    @classmethod
    def from_json(cls, position: int, data: Mapping[str, Any]) -> Self:
        """Raises `BadInput` when a field is missing or is not what it should be."""
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            raise BadInput(_("A GPU in the hosts file has no name."))
        total = _number(data, "memory_total_mib")
        if total == 0:
            raise BadInput(_("%(gpu)s: memory_total_mib must be more than 0.") % {"gpu": data["name"]})
        used = min(_number(data, "memory_used_mib", 0), total)
        capability = str(data.get("compute_capability") or "")
        return cls(_number(data, "index", position), data["name"], total, used, capability)

    @cached_property
    def usable_bytes(self) -> int:
        """Total memory as CUDA reports it, the base of gpu_memory_utilization: less than nvidia-smi's figure.

        Fitted to published pairs: A10 23028 MiB → 22.1 GiB, H100 81559 → 79.1, H200 143771 → 139.7.
        """
        return max(1, int(self.memory_total_mib * MIB * 0.9975) - 320 * MIB)

    def most_utilization(self, workers: int) -> float:
        """The largest gpu_memory_utilization with which a worker starts beside what other processes hold.

        vLLM refuses to start when less than utilization × total is free after its CUDA context.
        """
        context = CONTEXT_BYTES + (NCCL_BYTES if workers > 1 else 0)
        return _whole_percent(self.usable_bytes, self.memory_used_mib * MIB + context)

    def requested(self, utilization: float) -> int:
        """Bytes that vLLM takes for itself, all told."""
        return math.ceil(self.usable_bytes * utilization)

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability as numbers; an unknown one counts as current (9.0)."""
        major, _dot, minor = self.compute_capability.partition(".")
        return (int(major), int(minor or 0)) if major.isdigit() and (minor or "0").isdigit() else (9, 0)

    @property
    def speed(self) -> Speed:
        return speed_of(self.name)


@dataclass(frozen=True)
class HostSpec:
    """One host. Its own memory matters only when it has no GPU."""

    name: str
    gpus: tuple[GpuSpec, ...] = ()
    memory_total_mib: int = 0
    memory_available_mib: int = 0

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """One entry of hosts.json. Raises `BadInput`."""
        if not isinstance(data, dict) or not isinstance(data.get("name"), str) or not data["name"]:
            raise BadInput(_("A host in the hosts file has no name."))
        if not isinstance(data.get("gpus", []), list):
            raise BadInput(_("%(host)s: gpus must be a list.") % {"host": data["name"]})
        gpus = tuple(GpuSpec.from_json(i, gpu) for i, gpu in enumerate(data.get("gpus", [])))
        if len({gpu.index for gpu in gpus}) < len(gpus):
            raise BadInput(_("%(host)s: two GPUs have the same index.") % {"host": data["name"]})
        total = _number(data, "memory_total_mib", 0)
        return cls(data["name"], gpus, total, _number(data, "memory_available_mib", total))

    @classmethod
    def from_facts(cls, name: str, facts: Facts) -> Self:
        """A node as it was last seen."""
        gpus = tuple(
            GpuSpec(g.index, g.name, g.memory_total_mib, g.memory_used_mib, g.compute_capability) for g in facts.gpus
        )
        return cls(name, gpus, facts.memory_total // MIB, facts.memory_available // MIB)


def _number(data: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise BadInput(_("%(key)s must be a number, not %(value)r.") % {"key": key, "value": value})
    return int(value)
