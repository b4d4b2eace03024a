"""Predictions beside what vLLM logged in real starts: hosts of one H200 or H100 each, Qwen2.5-14B.

The log lines are from vLLM 0.26.0; the plan must come near them without having seen the machine. Without more said,
four H200 as four hosts with the article's flags.
"""

from __future__ import annotations

import pytest

from deployments.plan import HostSpec, Plan, Wishes, plan
from deployments.plan.hosts import GIB
from tests.plans import hosts, model

FLAGS = {"gpu-memory-utilization": 0.75, "max-model-len": 4096, "max-num-seqs": 64}


def planned(**flags: int | bool) -> Plan:
    wishes = Wishes.from_flags({**FLAGS, **{key.replace("_", "-"): value for key, value in flags.items()}})
    return plan(model("qwen2.5-14b"), hosts("h200 | h200 | h200 | h200"), wishes, 20)


def test_the_memory_that_vllm_asks_for_is_predicted() -> None:
    """Desired GPU memory utilization is (0.75, 104.85 GiB)."""
    [host, *_rest] = hosts("h200")

    assert host.gpus[0].requested(0.75) / GIB == pytest.approx(104.85, rel=0.001)


def test_a_pipeline_of_four_loads_what_was_predicted() -> None:
    """Model loading took 7.66 GiB (first and last stage), 6.21 GiB (the others)."""
    outcome = planned(pipeline_parallel_size=4, tensor_parallel_size=1)

    weights = [place.weights_bytes / GIB for place in outcome.placement]
    assert weights == pytest.approx([7.66, 6.21, 6.21, 7.66], abs=0.02)


def test_a_pipeline_of_four_has_the_predicted_kv_cache() -> None:
    """GPU KV cache size: 2,086,608 tokens; Maximum concurrency for 4,096 tokens per request: 509.43x."""
    outcome = planned(pipeline_parallel_size=4, tensor_parallel_size=1)

    assert outcome.kv_tokens == pytest.approx(2_086_608, rel=0.01)
    assert outcome.max_concurrency == pytest.approx(509.43, rel=0.01)


def test_four_tensor_ranks_in_eager_mode_are_predicted() -> None:
    """Model loading took 6.97 GiB; Available KV cache memory: 97.24 GiB; GPU KV cache size: 2,124,128 tokens."""
    outcome = planned(tensor_parallel_size=4, enforce_eager=True)

    assert outcome.placement[0].weights_bytes / GIB == pytest.approx(6.97, abs=0.04)
    assert outcome.placement[0].kv_bytes / GIB == pytest.approx(97.24, rel=0.01)
    assert outcome.kv_tokens == pytest.approx(2_124_128, rel=0.01)


def test_a_prediction_never_promises_more_cache_than_there_was() -> None:
    assert planned(pipeline_parallel_size=4, tensor_parallel_size=1).kv_tokens <= 2_086_608
    assert planned(tensor_parallel_size=4, enforce_eager=True).kv_tokens <= 2_124_128


def test_a_pipeline_over_two_h100_is_predicted() -> None:
    """Model loading took 13.83 GiB; Available KV cache memory: 51.80 GiB; 565,840 tokens; 2,590 tok/s at 64 streams.

    Rolled out by Quarterdeck over SSH on 2026-11-25, vLLM 0.26.0: two hosts of one H100 each, 98 Gbit/s between them.
    """
    flags = {"gpu-memory-utilization": 0.85, "max-model-len": 4096, "max-num-seqs": 64, "pipeline-parallel-size": 2}
    outcome = plan(model("qwen2.5-14b"), hosts("h100 | h100"), Wishes.from_flags(flags), 98)

    assert outcome.placement[0].weights_bytes / GIB == pytest.approx(13.83, abs=0.02)
    assert outcome.placement[0].kv_bytes / GIB == pytest.approx(51.80, rel=0.01)
    assert outcome.kv_tokens == pytest.approx(565_840, rel=0.01)
    assert outcome.tokens_per_second == pytest.approx(2590, rel=0.1)


def test_two_tensor_ranks_inside_a_host_are_predicted() -> None:
    """Model loading took 13.97 GiB; Available KV cache memory: 51.49 GiB; GPU KV cache size: 562,368 tokens."""
    flags = {"gpu-memory-utilization": 0.85, "max-model-len": 4096, "max-num-seqs": 64, "tensor-parallel-size": 2}
    outcome = plan(model("qwen2.5-14b"), hosts("h100 h100"), Wishes.from_flags(flags), None)

    assert outcome.placement[0].weights_bytes / GIB == pytest.approx(13.97, rel=0.015)
    assert outcome.placement[0].kv_bytes / GIB == pytest.approx(51.49, rel=0.01)
    assert outcome.kv_tokens == pytest.approx(562_368, rel=0.01)


@pytest.mark.parametrize(("sequences", "measured"), [(1, 105), (64, 2641)], ids=["one stream", "64 streams"])
def test_the_speed_of_a_pipeline_is_estimated_within_a_fifth(sequences: int, measured: int) -> None:
    outcome = planned(pipeline_parallel_size=4, tensor_parallel_size=1, max_num_seqs=sequences)

    assert outcome.tokens_per_second == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(("sequences", "measured"), [(1, 23), (64, 287)], ids=["one stream", "64 streams"])
def test_the_speed_of_tensor_parallelism_over_the_network_is_estimated_within_a_quarter(
    sequences: int, measured: int
) -> None:
    outcome = planned(tensor_parallel_size=4, enforce_eager=True, max_num_seqs=sequences)

    assert outcome.tokens_per_second == pytest.approx(measured, rel=0.25)


def test_a_gpu_shows_cuda_less_memory_than_nvidia_smi() -> None:
    """GiB that CUDA reports, as published: A10 22.1, H100 79.18, H200 139.80."""
    shown = {name: _cuda_gib(hosts(name)) for name in ("a10", "h100", "h200", "l40s", "rtx4090", "t4")}

    published = {"a10": 22.1, "h100": 79.18, "h200": 139.80, "l40s": 44.5, "rtx4090": 23.6, "t4": 14.6}
    assert shown == pytest.approx(published, rel=0.006)


def _cuda_gib(machines: list[HostSpec]) -> float:
    return machines[0].gpus[0].usable_bytes / GIB
