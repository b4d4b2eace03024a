"""Plans checked by hand.

Beside each case stands the calculation on paper: the parameters as published, two bytes each (one for fp8), divided
over the ranks; what vLLM may take of a GPU, which is 0.92 of what CUDA reports (A10 and L4 22.1 GiB, T4 14.6, RTX 4090
23.6, A100 39.5 and 79.3, L40S 44.5, H100 79.2, H200 139.8); 1.5 GiB for activations and CUDA graphs where nothing else
is said; and the KV cache that a token takes, layers × 2 × KV heads × head size × 2 bytes. Paper and plan may differ by
the working memory alone, so the tokens may differ by 8 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from deployments.plan import Wishes, plan
from deployments.plan.wishes import Value
from tests.plans import hosts, model

GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """``weights`` in GiB and ``token`` in KiB are those of the fullest rank."""

    model: str
    hosts: str
    layout: tuple[int, int, int]
    weights: float
    token: float
    tokens: int
    wishes: Mapping[str, Value] = field(default_factory=dict)
    gbps: float = 10
    partition: str = ""

    def __str__(self) -> str:
        return f"{self.model} on {self.hosts.replace(' ', '')}" + "".join(f" {k}={v}" for k, v in self.wishes.items())


ARTICLE: Mapping[str, Value] = {"gpu-memory-utilization": 0.75, "max-model-len": 4096, "max-num-seqs": 64}

CASES = [
    # 494.0M: 0.92 GiB. 24 layers × 2 × 2 × 64 × 2 = 12 KiB. 20.3 - 0.9 - 1.5 = 17.9 GiB
    Case("qwen2.5-0.5b", "a10", (1, 1, 1), 0.92, 12, 1_565_000),
    # 1.544G: 2.88 GiB. 28 × 2 × 2 × 128 × 2 = 28 KiB. T4: 13.4 - 2.9 - 1.5 = 9.1 GiB
    Case("qwen2.5-1.5b", "t4", (1, 1, 1), 2.88, 28, 339_000),
    # 3.086G: 5.75 GiB, one L4 is enough: a copy each. 36 × 2 × 2 × 128 × 2 = 36 KiB. 20.3 - 5.8 - 1.5 = 13.1 GiB
    Case("qwen2.5-3b", "l4 | l4", (1, 1, 2), 5.75, 36, 381_000),
    # TP=4 with 2 KV heads: each is held by two GPUs, so a token takes 36 / 2 = 18 KiB on each, not 36 / 4.
    # 5.75 / 4 + the copied K and V = 1.45 GiB. 20.3 - 1.5 - 1.5 = 17.4 GiB
    Case("qwen2.5-3b", "4xl4", (4, 1, 1), 1.45, 18, 1_012_000, {"tensor-parallel-size": 4}),
    # 7.616G: 14.19 GiB, fits one A10: four copies. 28 × 2 × 4 × 128 × 2 = 56 KiB. 20.3 - 14.2 - 1.5 = 4.65 GiB
    Case("qwen2.5-7b", "a10 | a10 | a10 | a10", (1, 1, 4), 14.19, 56, 87_000),
    # The second GPU has 22.1 - 5.9 - 1.0 = 15.2 GiB free: 0.68 of 22.1 for both. 7.09 GiB each, 28 KiB.
    # 15.0 - 7.1 - 1.5 = 6.4 GiB
    Case("qwen2.5-7b", "a10 a10-used6000", (2, 1, 1), 7.09, 28, 241_000),
    # T4: 13.4 GiB < 14.2, so TP=2: 28 heads and 4 KV heads divide. 13.4 - 7.1 - 1.5 = 4.84 GiB
    Case("qwen2.5-7b", "2xt4", (2, 1, 1), 7.09, 28, 181_000),
    # The article's hosts. 14.77G: 27.51 GiB > 20.3. PP=4: stage 12 × 0.5127 + embedding 1.45 = 7.60 GiB.
    # 48 / 4 × 2 × 8 × 128 × 2 = 48 KiB. 20.3 - 7.6 - 1.5 = 11.2 GiB
    Case("qwen2.5-14b", "a10 | a10 | a10 | a10", (1, 4, 1), 7.60, 48, 245_000),
    # The article's flags: 0.75 × 22.1 = 16.6 GiB. 16.6 - 7.6 - 1.5 = 7.5 GiB (serving.md: 164,000)
    Case("qwen2.5-14b", "a10 | a10 | a10 | a10", (1, 4, 1), 7.60, 48, 164_000, ARTICLE),
    # The article's layout, if one insists. 27.51 / 4 = 6.88 GiB. 16.6 - 6.9 - 1.5 = 8.2 GiB
    Case(
        "qwen2.5-14b",
        "a10 | a10 | a10 | a10",
        (4, 1, 1),
        6.88,
        48,
        180_000,
        {**ARTICLE, "tensor-parallel-size": 4},
    ),
    # In one host tensor parallelism stays inside: 20.3 - 6.9 - 1.5 = 11.95 GiB
    Case("qwen2.5-14b", "4xa10", (4, 1, 1), 6.88, 48, 261_000),
    # A network as fast as NVLink makes one host of four
    Case("qwen2.5-14b", "a10 | a10 | a10 | a10", (4, 1, 1), 6.88, 48, 261_000, gbps=3600),
    # One H200 holds a copy: 48 × 2 × 8 × 128 × 2 = 192 KiB. 0.75 × 139.8 - 27.5 - 2.2 (8,192 tokens a step) = 75.1 GiB
    Case("qwen2.5-14b", "h200 | h200 | h200 | h200", (1, 1, 4), 27.51, 192, 410_000, ARTICLE),
    # 40 heads, 3 GPUs in a host: TP=3 is impossible, so the pipeline has three stages of 16 layers
    # 16 × 0.5127 + 1.45 = 9.65 GiB; 64 KiB. 20.3 - 9.7 - 1.5 = 9.2 GiB
    Case("qwen2.5-14b", "3xa10", (1, 3, 1), 9.65, 64, 150_000),
    # 32.76G: 61.02 GiB / 2. 64 × 2 × 8 × 128 × 2 / 2 = 128 KiB. 73.0 - 30.5 - 1.5 = 40.9 GiB
    Case("qwen2.5-32b", "2xa100-80", (2, 1, 1), 30.51, 128, 335_000),
    # 61.02 / 4 = 15.26 GiB: each host holds a copy. 64 KiB. 21.7 - 15.3 - 1.5 = 4.95 GiB
    Case("qwen2.5-32b", "4xrtx4090 | 4xrtx4090", (4, 1, 2), 15.26, 64, 81_000),
    # Two kinds of GPU: 36.4 and 40.9 GiB. With n layers of 0.91 GiB and 4 KiB × n a token beside embedding (1.45) and
    # overhead (1.5): 30 + 34 layers leave 36.4 - 28.7 - 1.5 = 6.2 GiB / 120 KiB and 40.9 - 32.4 - 1.5 = 7.0 / 136
    Case("qwen2.5-32b", "a100-40 l40s", (1, 2, 1), 32.38, 136, 54_000, partition="30,34"),
    # One large and three small: 25.1 GiB in 26 layers on the L40S, 40.9 - 25.1 - 1.5 = 14.3 GiB / 104 KiB = 144k;
    # 13 layers on an A10, 20.3 - 11.8 - 1.5 = 7.0 GiB / 52 KiB = 141k
    Case("qwen2.5-32b", "l40s | a10 | a10 | a10", (1, 4, 1), 25.1, 104, 143_000, partition="26,13,13,12"),
    # 72.71G: 135.4 GiB / 8. 80 × 2 × 1 × 128 × 2 = 40 KiB. 72.9 - 16.9 - 2.1 (8,192 tokens a step) = 53.9 GiB
    Case("qwen2.5-72b", "8xh100", (8, 1, 1), 16.93, 40, 1_413_000),
    # Two hosts of eight A10: each holds a copy. 80 layers of graphs: 20.3 - 16.9 - 1.9 = 1.5 GiB
    Case("qwen2.5-72b", "8xa10 | 8xa10", (8, 1, 2), 16.93, 40, 39_500),
    # 4-bit: 80 layers of 877M × 0.52 B = 34.0 GiB, and 2 × 2.32 in 16 bits: 38.6. 320 KiB.
    # 72.9 - 38.7 - 3.5 (8,192 tokens × 89,000 wide, 80 layers of graphs) = 30.7 GiB
    Case("qwen2.5-72b-awq", "h100", (1, 1, 1), 38.6, 320, 100_000),
    # 8.030G: 14.96 GiB. 32 × 2 × 8 × 128 × 2 = 128 KiB. 20.3 - 15.0 - 1.4 = 3.97 GiB
    Case("llama-3-8b", "a10", (1, 1, 1), 14.96, 128, 32_500),
    # Eight copies rather than one over eight GPUs: 72.9 - 15.0 - 1.9 = 56.0 GiB
    Case("llama-3.1-8b", "8xh100", (1, 1, 8), 14.96, 128, 459_000),
    # A T4 beside an H100: the H100 alone is faster than any layout with both
    Case("llama-3-8b", "h100 t4", (1, 1, 1), 14.96, 128, 459_000),
    # 70.55G: 131.42 GiB / 4 = 32.9; two copies. 80 KiB. 128.6 - 32.9 - 2.3 = 93.4 GiB
    Case("llama-3-70b", "8xh200", (4, 1, 2), 32.86, 80, 1_224_000),
    # fp8: 68.45G × 1 + embedding and head 2 × 1.05G × 2 = 67.7 GiB / 2 = 33.8. 160 KiB. 72.9 - 33.9 - 2.9 = 36.1 GiB
    Case("llama-3.1-70b-fp8", "2xh100", (2, 1, 1), 33.8, 160, 237_000),
    # Two hosts of four A100-40: TP=4 inside, PP=2 across. 40 layers of 1.594 GiB + 1.96 = 65.7 / 4 = 16.4 GiB.
    # 40 × 2 × 2 × 128 × 2 = 40 KiB. 36.3 - 16.4 - 1.5 = 18.4 GiB
    Case("llama-3-70b", "4xa100-40 | 4xa100-40", (4, 2, 1), 16.43, 40, 482_000),
    # 46.70G: 86.99 GiB / 2. 32 × 2 × 4 × 128 × 2 = 64 KiB. 73.0 - 43.5 - 1.5 = 28.0 GiB
    Case("mixtral-8x7b", "2xa100-80", (2, 1, 1), 43.50, 64, 458_000),
    # TP=4 inside each host, PP=2 across: 87 / 8 = 10.9 GiB; 16 × 2 × 2 × 128 × 2 = 16 KiB. 20.3 - 10.9 - 1.0 = 8.4 GiB
    Case("mixtral-8x7b", "4xa10 | 4xa10", (4, 2, 1), 10.87, 16, 550_000),
    # 8.191G: 15.26 GiB. 36 × 2 × 8 × 128 × 2 = 144 KiB. 20.3 - 15.3 - 1.5 = 3.6 GiB: 26k tokens of the model's 41k
    Case("qwen3-8b", "l4", (1, 1, 1), 15.26, 144, 26_000),
    # 30.53G: 56.87 GiB, 128 experts. 48 × 2 × 4 × 128 × 2 = 96 KiB. 73.0 - 56.9 - 1.5 = 14.6 GiB
    Case("qwen3-30b-a3b", "a100-80", (1, 1, 1), 56.87, 96, 159_000),
    # 235.1G: 437.9 GiB / 8, and 4 KV heads over 8 GPUs are each held twice. 94 × 2 × 1 × 128 × 2 = 47 KiB.
    # 128.6 - 54.8 - 2.4 = 71.4 GiB
    Case("qwen3-235b-a22b", "8xh200", (8, 1, 1), 54.83, 47, 1_593_000),
    # 9.242G, tied, stored in 32 bits but loaded in 16: 17.21 GiB. 42 × 2 × 8 × 256 × 2 = 336 KiB.
    # 40.9 - 17.2 - 1.8 = 21.9 GiB
    Case("gemma-2-9b", "l40s", (1, 1, 1), 17.21, 336, 68_500),
    # A nested text_config without heads: 27.01G = 50.31 GiB, and 0.41G of vision tower = 0.77. 62 × 2 × 16 × 128 × 2
    # = 496 KiB. 73.0 - 51.1 - 2.0 = 19.9 GiB
    Case("gemma-3-27b", "a100-80", (1, 1, 1), 51.1, 496, 42_000),
    # MLA: 15.71G = 29.26 GiB. 27 × (512 + 64) × 2 = 30.4 KiB. 40.9 - 29.3 - 1.2 = 10.4 GiB
    Case("deepseek-v2-lite", "l40s", (1, 1, 1), 29.26, 30.375, 359_000),
    # MLA's latent is whole on each of four ranks: still 30.4 KiB. 20.3 - 7.4 - 1.1 = 11.8 GiB
    Case("deepseek-v2-lite", "4xa10", (4, 1, 1), 7.4, 30.375, 407_000),
    # fp8: 671.0G, one byte, and 1.85G of embedding and head two: 626.7 GiB. / 8 = 78.3, down-projections whole: 79.1.
    # 61 × 576 × 2 = 68.6 KiB. 128.6 - 79.1 - 2.7 = 46.8 GiB
    Case("deepseek-v3", "8xh200", (8, 1, 1), 79.1, 68.625, 715_000),
    # 31 of 61 layers on the fuller half: 31 × 10.69 + 1.73 = 333 / 8 = 40.8 (the first three are dense). 34.9 KiB.
    # 72.9 - 41 - 2.4 = 29.5 GiB; the other stage has 30 layers
    Case("deepseek-v3", "8xh100 | 8xh100", (8, 2, 1), 40.8, 34.875, 920_000, gbps=400),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_is_what_paper_says(case: Case) -> None:
    outcome = plan(model(case.model), hosts(case.hosts), Wishes.from_flags(case.wishes), case.gbps)

    assert outcome.layout == case.layout
    fullest = max(place.weights_bytes for place in outcome.placement)
    assert fullest / GIB == pytest.approx(case.weights, rel=0.015, abs=0.07)
    dearest = max(place.kv_bytes for place in outcome.placement) / outcome.kv_tokens / 1024
    assert dearest == pytest.approx(case.token)
    assert outcome.kv_tokens == pytest.approx(case.tokens, rel=0.08)
    assert outcome.environment.get("VLLM_PP_LAYER_PARTITION", "") == case.partition


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-72b", 72_706_203_648),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("gemma-2-9b", 9_241_705_984),
        ("deepseek-v2-lite", 15_706_484_224),
        ("deepseek-v3", 671_026_419_200),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_the_parameters_are_counted_exactly(name: str, published: int) -> None:
    assert model(name).parameters == published
