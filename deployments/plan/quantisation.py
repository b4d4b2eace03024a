"""Bytes a parameter takes: as stored, or quantised by the checkpoint or by a wish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

#: Widths of the data types that config.json and vLLM name.
DTYPE_BYTES: Mapping[str, float] = {
    "float32": 4,
    "float": 4,
    "bfloat16": 2,
    "float16": 2,
    "half": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}
_SCALES = 2.5  # bytes a group of quantised weights adds: a 16-bit scale and a 4-bit zero point


@dataclass(frozen=True)
class Precision:
    """Bytes a parameter: in linear layers, in routed experts, elsewhere; and as the checkpoint stores it."""

    dtype: str
    linear: float
    expert: float
    other: float
    stored: float
    quantised: str = ""  # the method's name, empty for none

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
        stored = DTYPE_BYTES.get(dtype, 2)
        plain = cls(dtype, 2, 2, 2, stored)  # vLLM loads float32 checkpoints in 16 bits unless --dtype says otherwise
        q = config.get("quantization_config")
        if not isinstance(q, dict):
            return plain
        method = str(q.get("quant_method") or q.get("quant_algo") or "quantised").lower()
        bits, group = _bits(q, method), _group(q)
        method = "fp8" if _is_fp8(q) else method
        width = bits / 8 + (_SCALES / group if bits < 8 else 0)
        # gpt-oss: MXFP4 is for the experts alone
        return replace(plain, linear=2 if method == "mxfp4" else width, expert=width, quantised=method)

    def as_dtype(self, dtype: str) -> Self:
        """What ``--dtype`` makes of it; quantised weights stay as they are."""
        width = DTYPE_BYTES.get(dtype, 2)
        if self.quantised:
            return replace(self, dtype=dtype, other=width)
        return replace(self, dtype=dtype, linear=width, expert=width, other=width)

    def quantised_to(self, method: str) -> Self:
        """What ``--quantization`` makes of weights that are not quantised yet, while loading."""
        if self.quantised:
            return self
        width = {"fp8": 1.0, "bitsandbytes": 0.5 + _SCALES / 64}.get(method, self.linear)
        return replace(self, linear=width, expert=width, quantised=method)

    def scaled(self, ratio: float) -> Self:
        """The quantised widths corrected by the checkpoint's true size."""
        return replace(self, linear=self.linear * ratio, expert=self.expert * ratio)


def _bits(q: Mapping[str, Any], method: str) -> float:
    if "fp4" in method:
        return 4
    if "fp8" in method:
        return 8
    if q.get("load_in_4bit"):
        return 4
    groups = q.get("config_groups")
    if isinstance(groups, dict) and groups:
        weights = next(iter(groups.values())).get("weights") or {}
        return float(weights.get("num_bits") or 8)
    return float(q.get("bits") or q.get("w_bit") or 8)


def _is_fp8(q: Mapping[str, Any]) -> bool:
    """Whether compressed-tensors holds 8-bit floats, which need the same GPUs as fp8 does."""
    groups = q.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = (first or {}).get("weights") or {}
    return weights.get("type") == "float" and weights.get("num_bits") == 8


def _group(q: Mapping[str, Any]) -> float:
    size = q.get("group_size") or q.get("q_group_size") or 128
    return float(size) if isinstance(size, int) and size > 0 else 1024
