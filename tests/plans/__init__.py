"""Models (their real config.json files) and hosts for the tests of the plan."""

from __future__ import annotations

import json
import re
from pathlib import Path

from deployments.plan import GpuSpec, HostSpec, ModelConfig

HERE = Path(__file__).parent

#: Product name, memory.total in MiB and compute capability, as nvidia-smi prints them.
GPUS = {
    "a10": ("NVIDIA A10", 23028, "8.6"),
    "l4": ("NVIDIA L4", 23034, "8.9"),
    "t4": ("Tesla T4", 15360, "7.5"),
    "v100": ("Tesla V100-SXM2-32GB", 32768, "7.0"),
    "rtx4090": ("NVIDIA GeForce RTX 4090", 24564, "8.9"),
    "l40s": ("NVIDIA L40S", 46068, "8.9"),
    "a100-40": ("NVIDIA A100-SXM4-40GB", 40960, "8.0"),
    "a100-80": ("NVIDIA A100-SXM4-80GB", 81920, "8.0"),
    "h100": ("NVIDIA H100 80GB HBM3", 81559, "9.0"),
    "h200": ("NVIDIA H200", 143771, "9.0"),
}
MODELS = sorted(path.parent.name for path in HERE.glob("*/config.json"))


def model(name: str) -> ModelConfig:
    return ModelConfig.from_config(json.loads((HERE / name / "config.json").read_text()))


def hosts(text: str) -> list[HostSpec]:
    """``"4xh100 | a10 a10-used6000"``: te1 has four H100, te2 two A10, one with 6,000 MiB held by others."""
    return [_host(f"te{i}", words.split()) for i, words in enumerate(text.split("|"), 1)]


def _host(name: str, words: list[str]) -> HostSpec:
    gpus: list[GpuSpec] = []
    for word in words:
        match = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9-]*?)(?:-used(\d+))?", word)
        assert match, word
        product, total, capability = GPUS[match[2]]
        for _one in range(int(match[1] or 1)):
            gpus.append(GpuSpec(len(gpus), product, total, int(match[3] or 0), capability))
    return HostSpec(name, tuple(gpus))
