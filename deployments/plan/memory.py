"""What a rank holds: weights, working memory, and the KV cache that is left. All sizes in bytes.

Checked against real starts (four H200, Qwen2.5-14B, utilization 0.75): PP=4 loaded 7.66 and 6.21 GiB where
this says 7.67 and 6.22, and kept 95.52 GiB for the cache where this says 95.26; TP=4 without graphs loaded
6.97 and kept 97.24 where this says 6.94 and 96.9. tests/test_plan_measured.py holds it to that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from deployments.plan.hosts import GIB, MIB, GpuSpec
from deployments.plan.model import ModelConfig
from deployments.plan.quantisation import DTYPE_BYTES
from deployments.plan.wishes import Wishes

# Estimates, to be replaced by what a first start measured: attention workspaces, memory outside PyTorch, CUDA
# graphs.
WORKSPACE = int(0.4 * GIB)
OUTSIDE_TORCH = int(0.06 * GIB)
GRAPHS = int(0.2 * GIB)
GRAPHS_PER_LAYER = 10 * MIB
LOGITS_WIDTH = 12  # logits in 16 and 32 bits, and the sampler's sorted copy


def even_partition(layers: int, pipeline: int) -> tuple[int, ...]:
    """Layers of each stage when nobody says: vLLM's get_pp_indices, the remainder before the last."""
    parts = [layers // pipeline] * pipeline
    for i in range(2, layers % pipeline + 2):
        parts[-i] += 1
    return tuple(parts)


@dataclass(frozen=True)
class Stage:
    """One pipeline stage as every one of its ranks sees it."""

    first_layer: int
    end_layer: int
    weights: int
    overhead: int
    kv_room: int  # may be negative: it does not fit
    kv_per_token: int

    def tokens(self, block: int) -> int:
        """Tokens that fit, in whole blocks."""
        return max(0, self.kv_room // (self.kv_per_token * block) * block)


@dataclass(frozen=True)
class Memory:
    """Sizes of one model cut by one tensor size, under given wishes."""

    model: ModelConfig
    tensor: int
    wishes: Wishes
    batched_tokens: int
    sequences: int  # that one copy's server may run at once

    @cached_property
    def kv_per_layer(self) -> int:
        wished = self.wishes.kv_dtype
        return self.model.kv_bytes_per_token(self.tensor, DTYPE_BYTES[wished] if wished else self.model.precision.other)

    @cached_property
    def layer_sums(self) -> Sequence[int]:
        """Bytes of the first n layers on one rank, for n from 0."""
        sizes = (int(self.model.layer_bytes(layer, self.tensor)) for layer in self.model.layers)
        return list(accumulate(sizes, initial=0))

    @cached_property
    def expert_sums(self) -> Sequence[int]:
        """Parameters of the routed experts in the first n layers, undivided."""
        return list(accumulate((layer.experts for layer in self.model.layers), initial=0))

    @cached_property
    def active_sums(self) -> Sequence[float]:
        """Parameters that one token passes through in the first n layers, undivided."""
        m = self.model
        share = m.experts_per_token / m.experts if m.experts else 0.0
        return list(accumulate((a.split + a.kv + a.experts * share for a in m.layers), initial=0.0))

    @cached_property
    def table(self) -> int:
        """The embedding, or the LM head, on one rank."""
        return int(self.model.embedding / self.tensor * self.model.precision.other)

    @cached_property
    def buffers(self) -> int:
        """The rotary cache: one row in 32 bits for every position the model knows."""
        return max(self.model.longest, self.wishes.max_model_len or 0) * self.model.rotary * 4

    @cached_property
    def activations(self) -> int:
        """The peak of one MLP (or of the routed experts) and what is around it, for a full batch."""
        m, width = self.model, max(self.model.intermediate, default=0)
        mlp = 3 * width / self.tensor + 4 * m.hidden
        if m.experts:
            routed = 3 * m.intermediate[0] / self.tensor + m.hidden
            mlp = max(mlp, m.experts_per_token * routed + 4 * m.hidden)
        return int(self.batched_tokens * 2 * (mlp + 2 * m.heads * m.head_dim / self.tensor))

    @cached_property
    def logits(self) -> int:
        return self.sequences * self.model.padded_vocabulary * LOGITS_WIDTH

    def weights(self, lo: int, hi: int) -> int:
        """Weights of layers lo … hi - 1 on one rank, with what the first and the last stage hold besides."""
        size = self.layer_sums[hi] - self.layer_sums[lo] + self.buffers
        first, last = lo == 0, hi == len(self.model.layers)
        if first:
            size += self.table + int(self.model.extra * self.model.precision.other)
        if last:
            size += int(self.model.hidden * self.model.precision.other)
            size += 0 if first and self.model.tied else self.table
        return size

    def overhead(self, lo: int, hi: int) -> int:
        """Everything a rank needs besides weights and cache."""
        peak = max(self.activations, self.logits if hi == len(self.model.layers) else 0)
        graphs = 0 if self.wishes.eager else GRAPHS + GRAPHS_PER_LAYER * (hi - lo)
        return peak + WORKSPACE + OUTSIDE_TORCH + graphs

    def stage(self, lo: int, hi: int, requested: int) -> Stage:
        """The stage on GPUs of which vLLM takes ``requested`` bytes."""
        weights, overhead = self.weights(lo, hi), self.overhead(lo, hi)
        room = requested - weights - overhead
        wished = self.wishes.kv_cache_bytes
        if wished:  # the cache's size is said outright; it must still fit
            room = wished if room >= wished else room - wished
        return Stage(lo, hi, weights, overhead, room, self.kv_per_layer * (hi - lo))

    def stages(self, parts: Sequence[int], requested: Sequence[int]) -> tuple[Stage, ...]:
        """All stages of a copy, for a partition of the layers."""
        ends = list(accumulate(parts))
        return tuple(self.stage(hi - n, hi, size) for n, hi, size in zip(parts, ends, requested, strict=True))

    def uneven_partition(self, requested: Sequence[int], needed: int) -> tuple[int, ...] | None:
        """Layers of each stage so that the most tokens fit, for GPUs that differ; None if nothing fits.

        The most is found to 2 %, but never missed where ``needed`` tokens fit.
        """
        block = self.wishes.block_size
        high = max(1, max(requested) // (self.kv_per_layer * block))
        low, best = -(-needed // block), self._fill(requested, needed)
        if best is None:
            return self._fill(requested, 1)
        while high - low > low // 50:
            middle = (low + high + 1) // 2
            parts = self._fill(requested, middle * block)
            best, low, high = (parts, middle, high) if parts else (best, low, middle - 1)
        return best

    def _fill(self, requested: Sequence[int], tokens: int) -> tuple[int, ...] | None:
        """Each stage takes as many layers as its GPUs hold beside ``tokens``; later ones get one at least."""
        count, lo, parts = len(self.model.layers), 0, []
        for j, size in enumerate(requested):
            ends = range(lo + 1, count - (len(requested) - j - 1) + 1)
            taken = bisect_left(ends, True, key=lambda hi: not self._holds(lo, hi, size, tokens))
            if not taken:
                return None
            parts.append(taken)
            lo += taken
        return tuple(parts) if lo == count else None

    def _holds(self, lo: int, hi: int, size: int, tokens: int) -> bool:
        return size >= self.weights(lo, hi) + self.overhead(lo, hi) + tokens * self.kv_per_layer * (hi - lo)


def default_batched_tokens(gpus: Collection[GpuSpec]) -> int:
    """What vLLM's server takes for max-num-batched-tokens on such GPUs (engine/arg_utils.py, 0.32)."""
    largest = max(gpus, key=lambda gpu: gpu.usable_bytes, default=GpuSpec(0, "", 0))
    if largest.usable_bytes >= 160 * GIB:
        return 16384
    if largest.usable_bytes >= 70 * GIB and "a100" not in largest.name.lower():
        return 8192
    return 2048
