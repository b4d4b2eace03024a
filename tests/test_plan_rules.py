"""What the plan knows about wishes: which are impossible and why, what comes nearest, and how it explains itself."""

from __future__ import annotations

import json

import pytest

from deployments.plan import BadInput, GpuSpec, HostSpec, ModelConfig, Plan, Wishes, plan
from deployments.plan.wishes import Value
from tests.plans import HERE, hosts, model

ARTICLE = "a10 | a10 | a10 | a10"


def planned(name: str, machines: str, flags: dict[str, Value] | None = None, gbps: float | None = 10) -> Plan:
    return plan(model(name), hosts(machines), Wishes.from_flags(flags or {}), gbps)


def config(name: str) -> dict[str, object]:
    data = json.loads((HERE / name / "config.json").read_text())
    assert isinstance(data, dict)
    return data


# Impossible wishes


def test_three_tensor_ranks_for_forty_heads_are_refused_with_the_nearest() -> None:
    outcome = planned("qwen2.5-14b", ARTICLE, {"tensor-parallel-size": 3})

    assert not outcome.feasible
    assert outcome.problems == ("40 attention heads cannot be divided by 3.",)
    assert outcome.nearest
    assert outcome.nearest.layout.tensor in (2, 4)


def test_kv_heads_that_neither_divide_nor_copy_evenly_are_refused() -> None:
    outcome = planned("qwen2.5-14b", "8xa10", {"tensor-parallel-size": 5})

    assert outcome.problems == ("8 KV heads can be neither divided nor evenly copied over 5 GPUs.",)


def test_a_70b_model_on_one_a10_names_how_many_it_takes() -> None:
    outcome = planned("llama-3-70b", "a10")

    assert outcome.problems == ("The weights take 131.4 GiB; the GPU has 21.0 GiB free.",)
    assert outcome.nearest
    assert outcome.nearest.gpus == 8
    assert outcome.nearest.sentence == "8 hosts like te1 (8 × NVIDIA A10 in all) would hold it, with TP=1, PP=8."


def test_more_gpus_than_there_are_cannot_be_asked_for() -> None:
    outcome = planned("qwen2.5-7b", "2xa10", {"tensor-parallel-size": 2, "pipeline-parallel-size": 2})

    assert outcome.problems == ("TP=2 × PP=2 × 1 copies needs 4 GPUs; there are 2.",)


def test_more_stages_than_layers_are_refused() -> None:
    machines = " | ".join(["8xh100"] * 4)

    outcome = planned("qwen2.5-0.5b", machines, {"pipeline-parallel-size": 25})

    assert outcome.problems == ("24 layers cannot be cut into 25 stages.",)


def test_a_context_beyond_the_models_own_is_refused() -> None:
    outcome = planned("llama-3-8b", "h100", {"max-model-len": 16384})

    assert outcome.problems == ("The model allows 8,192 tokens of context; 16,384 were asked for.",)
    assert outcome.nearest
    assert outcome.nearest.flags == {"max-model-len": 8192}


def test_a_context_that_does_not_fit_names_the_longest_that_does() -> None:
    outcome = planned("llama-3.1-8b", "a10", {"max-model-len": "128K"})

    assert not outcome.feasible
    assert outcome.nearest
    longest = outcome.nearest.flags["max-model-len"]
    assert isinstance(longest, int)
    assert planned("llama-3.1-8b", "a10", {"max-model-len": longest}).feasible
    assert not planned("llama-3.1-8b", "a10", {"max-model-len": longest + 16}).feasible


def test_more_copies_than_fit_are_refused_with_the_number_that_does() -> None:
    outcome = planned("qwen2.5-14b", ARTICLE, {"data-parallel-size": 3})

    assert not outcome.feasible
    assert outcome.nearest
    assert outcome.nearest.layout.replicas in (1, 2)


@pytest.mark.parametrize(
    ("name", "machines", "flags"),
    [
        ("qwen2.5-14b", ARTICLE, {"tensor-parallel-size": 3}),
        ("qwen2.5-14b", "8xa10", {"tensor-parallel-size": 5, "max-model-len": 4096}),
        ("llama-3.1-8b", "a10", {"max-model-len": 131072}),
        ("llama-3-8b", "h100", {"max-model-len": 9000, "tensor-parallel-size": 3}),
        ("qwen2.5-7b", "a10-used4000", {"gpu-memory-utilization": 0.9}),
        ("qwen2.5-7b", "2xa10", {"tensor-parallel-size": 4, "max-model-len": 99999}),
        ("qwen2.5-14b", ARTICLE, {"kv-cache-memory-bytes": "90G"}),
    ],
)
def test_what_is_called_nearest_is_feasible(name: str, machines: str, flags: dict[str, Value]) -> None:
    refused = planned(name, machines, flags)
    assert refused.problems
    assert refused.nearest

    kept = {key: value for key, value in flags.items() if key not in refused.nearest.drop}
    changed = {**kept, **refused.nearest.flags}

    assert planned(name, machines, changed).layout == refused.nearest.layout


def test_a_gpu_without_bfloat16_gets_half() -> None:
    outcome = planned("qwen2.5-1.5b", "t4")

    assert outcome.flags["dtype"] == "half"
    assert "Tesla T4 has no bfloat16 (compute capability below 8.0), so dtype is half." in outcome.reasons


def test_bfloat16_is_not_forced_upon_an_old_gpu() -> None:
    outcome = planned("qwen2.5-1.5b", "t4", {"dtype": "bfloat16"})

    assert outcome.problems == ("Tesla T4 is left out: bfloat16 needs compute capability 8.0 or more.",)


def test_fp8_weights_leave_old_gpus_out() -> None:
    outcome = planned("llama-3.1-70b-fp8", "2xh100 | 4xv100")

    assert {place.host for place in outcome.placement} == {"te1"}
    assert any("Tesla V100" in reason for reason in outcome.reasons)


# Memory of others


def test_a_share_that_others_have_taken_is_refused_as_vllm_would() -> None:
    """vLLM: Free memory on device … is less than desired GPU memory utilization (0.9, …)."""
    outcome = planned("qwen2.5-7b", "a10-used4000", {"gpu-memory-utilization": 0.9})

    assert outcome.problems == (
        "A gpu-memory-utilization of 0.90 needs that share of each GPU free. Other processes leave it on 0 of 1"
        " GPUs; 1 are needed.",
    )
    assert outcome.nearest
    assert outcome.nearest.flags == {"gpu-memory-utilization": 0.79}


def test_a_busy_gpu_lowers_the_share_for_all_ranks() -> None:
    outcome = planned("qwen2.5-7b", "a10 a10-used6000")

    gpu = hosts("a10")[0].gpus[0]
    assert outcome.flags["gpu-memory-utilization"] == 0.68
    assert gpu.requested(0.68) + 6000 * (1 << 20) <= gpu.usable_bytes


def test_a_gpu_that_is_nearly_full_is_left_out() -> None:
    outcome = planned("qwen2.5-7b", "a10 | a10-used21000")

    assert [place.host for place in outcome.placement] == ["te1"]
    assert outcome.flags["gpu-memory-utilization"] == 0.92
    assert "Not used, while other processes hold memory there: te2 GPU 0 (20.5 GiB)." in outcome.reasons


def test_when_only_others_are_in_the_way_it_says_so() -> None:
    outcome = planned("qwen2.5-7b", "a10-used15000")

    assert outcome.nearest
    assert outcome.nearest.sentence == "It fits with TP=1, PP=1 once other processes have freed the GPUs' memory."


# Reasons and alternatives


def test_the_article_learns_why_a_pipeline_is_better() -> None:
    outcome = planned(
        "qwen2.5-14b", ARTICLE, {"gpu-memory-utilization": 0.75, "max-model-len": 4096, "max-num-seqs": 64}
    )

    assert (
        "A copy lies over 4 hosts joined by 10 Gbit/s. A pipeline hands over once a stage; tensor parallelism would"
        " talk twice in each of the 48 layers." in outcome.reasons
    )
    whys = {tuple(other.layout): other.why_not for other in outcome.alternatives}
    assert whys[4, 1, 1].startswith("Every layer would wait for the 10 Gbit/s network:")
    assert whys[3, 1, 1] == "40 attention heads cannot be divided by 3."
    assert whys[1, 1, 1].startswith("27.6 GiB of weights and 1.4 GiB of working memory do not fit in the 16.6 GiB")


def test_it_says_what_it_ranks_by() -> None:
    outcome = planned("qwen2.5-7b", "a10", {"max-num-seqs": 32})

    assert any(
        reason.startswith(
            "Layouts are ranked by the expected tokens a second with 32 requests at once (512 tokens in, 128 out),"
            " then by room for context."
        )
        for reason in outcome.reasons
    )


def test_a_network_that_nobody_measured_is_named_as_assumed() -> None:
    outcome = planned("qwen2.5-14b", ARTICLE, gbps=None)

    assert "The network between the hosts was not measured; 10 Gbit/s are assumed." in outcome.reasons


def test_no_layout_is_listed_twice_and_the_chosen_one_not_at_all() -> None:
    outcome = planned("llama-3-70b", "8xh200 | 8xh200")

    listed = [other.layout for other in outcome.alternatives]
    assert len(listed) == len(set(listed))
    assert outcome.layout not in listed


def test_few_requests_do_not_spread_over_idle_copies() -> None:
    outcome = planned("qwen2.5-7b", ARTICLE, {"max-num-seqs": 4})

    assert outcome.layout == (1, 1, 1)
    assert any(reason.startswith("3 GPUs stay free") for reason in outcome.reasons)


def test_a_poor_gpu_is_no_copy_of_its_own_when_it_would_cut_everybodys_context() -> None:
    outcome = planned("llama-3.1-8b", "h100 | a10")

    assert [place.host for place in outcome.placement] == ["te1"]
    assert outcome.max_model_len == 131072


def test_flags_that_the_plan_does_not_read_are_kept() -> None:
    outcome = planned("qwen2.5-7b", "a10", {"enable_prefix_caching": True, "--seed": 7})

    assert outcome.flags["enable-prefix-caching"] is True
    assert outcome.flags["seed"] == 7


def test_copies_are_servers_of_their_own_not_data_parallel_ranks() -> None:
    outcome = planned("qwen2.5-7b", ARTICLE, {"data-parallel-size": 2})

    assert outcome.layout
    assert outcome.layout.replicas == 2
    assert len({place.replica for place in outcome.placement}) == 2
    assert "data-parallel-size" not in outcome.flags


@pytest.mark.parametrize(
    ("machines", "executor"), [("a10", None), ("4xa10", "mp"), (ARTICLE, "ray")], ids=["one GPU", "a host", "hosts"]
)
def test_ray_carries_what_crosses_hosts(machines: str, executor: str | None) -> None:
    name = "qwen2.5-7b" if executor is None else "qwen2.5-14b"

    assert planned(name, machines).flags.get("distributed-executor-backend") == executor


def test_half_the_bytes_for_the_cache_hold_twice_the_tokens() -> None:
    plain, small = (planned("qwen2.5-7b", "a10", {"kv-cache-dtype": dtype}).kv_tokens for dtype in ("auto", "fp8"))

    assert small == pytest.approx(2 * plain, rel=0.001)


def test_a_wished_cache_size_is_kept() -> None:
    outcome = planned("qwen2.5-7b", "a10", {"kv-cache-memory-bytes": "2G"})

    assert outcome.placement[0].kv_bytes == pytest.approx(2 << 30, rel=0.001)


# Models and wishes as they come


def test_both_spellings_of_the_data_type_are_read() -> None:
    old, new = config("qwen2.5-7b"), config("qwen2.5-7b")
    new["dtype"] = new.pop("torch_dtype")

    assert ModelConfig.from_config(old) == ModelConfig.from_config(new)


def test_the_checkpoints_size_corrects_quantised_weights() -> None:
    data = config("qwen2.5-72b-awq")

    assert ModelConfig.from_config(data).weights_bytes == pytest.approx(41_600_000_000, rel=0.02)
    assert ModelConfig.from_config(data, 43_000_000_000).weights_bytes == pytest.approx(43_000_000_000, rel=1e-6)


def test_what_the_config_hides_is_found_in_the_checkpoint() -> None:
    data = config("qwen2.5-7b")
    bare = ModelConfig.from_config(data)

    tower = ModelConfig.from_config(data, bare.weights_bytes + 1_400_000_000)

    assert tower.extra == pytest.approx(700_000_000, rel=0.01)


def test_linear_rope_scaling_lengthens_the_context_and_yarn_does_not_twice() -> None:
    data = config("llama-3-8b")

    assert ModelConfig.from_config({**data, "rope_scaling": {"type": "linear", "factor": 4}}).longest == 32768
    assert ModelConfig.from_config({**data, "rope_scaling": {"type": "yarn", "factor": 4}}).longest == 8192


def test_a_config_without_its_numbers_is_bad_input() -> None:
    data = config("qwen2.5-7b")
    del data["hidden_size"]

    with pytest.raises(BadInput, match="hidden_size"):
        ModelConfig.from_config(data)


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("max-model-len=4k", 4000),
        ("max-model-len=4K", 4096),
        ("--max_model_len=4096", 4096),
        ("max-model-len=auto", None),
        ("max-model-len=-1", None),
    ],
)
def test_lengths_are_read_as_vllm_reads_them(word: str, read: int | None) -> None:
    assert Wishes.from_words([word]).max_model_len == read


@pytest.mark.parametrize(
    "word",
    [
        "max-model-len=0",
        "max-model-len=-5",
        "max-model-len=four",
        "max-model-len",
        "tensor-parallel-size=2.5",
        "gpu-memory-utilization=1.2",
        "gpu-memory-utilization=nan",
        "gpu-memory-utilization",
        "dtype=int4",
        "=3",
        "; rm -rf /",
        "max-model-len=" + "9" * 5000,
    ],
)
def test_a_wish_that_cannot_be_read_is_bad_input(word: str) -> None:
    with pytest.raises(BadInput):
        Wishes.from_words([word])


# Hosts without GPUs


def test_the_demo_gets_one_worker_on_the_host_with_the_most_free_memory() -> None:
    machines = [HostSpec("small", (), 8_000, 4_000), HostSpec("large", (), 16_000, 12_000)]

    outcome = plan(model("smollm2-135m"), machines, Wishes())

    assert outcome.layout == (1, 1, 1)
    assert [(place.host, place.gpu) for place in outcome.placement] == [("large", None)]
    assert outcome.max_model_len == 8192
    assert outcome.flags["kv-cache-memory-bytes"] == 512 << 20
    assert outcome.kv_tokens == 23_296  # 512 MiB / (30 layers × 2 × 3 heads × 64 × 2 bytes), in blocks of 128
    assert "gpu-memory-utilization" not in outcome.flags


def test_a_cpu_host_that_is_too_small_says_what_is_missing() -> None:
    outcome = plan(model("llama-3-8b"), [HostSpec("here", (), 16_000, 12_000)], Wishes())

    assert outcome.problems == ("here has no GPU, and the model needs 18.2 GiB of its memory; 11.7 GiB are free.",)


def test_a_model_lies_over_several_hosts_without_gpus_if_one_asks_or_has_to() -> None:
    machines = [HostSpec("small", (), 8_000, 6_000), HostSpec("large", (), 16_000, 12_000)]

    asked = plan(model("smollm2-135m"), machines, Wishes.from_flags({"pp": 2}))
    assert [(place.host, place.layers) for place in asked.placement] == [("large", (0, 15)), ("small", (15, 30))]
    # 8.03G in 16 bits are 14.96 GiB: 7.48 GiB and 3.2 GiB for the programs on each of two hosts with 13.7 GiB free
    needed = plan(model("llama-3-8b"), [HostSpec(name, (), 16_000, 14_000) for name in "ab"], Wishes())
    assert needed.layout == (1, 2, 1)


@pytest.mark.parametrize(
    ("machines", "flags", "problem", "nearest"),
    [
        (1, {"tp": 2}, "9 attention heads cannot be divided by 2.", "tensor-parallel-size=1"),
        (2, {"pp": 3}, "Without GPUs each host has one worker; the layout needs 3 hosts, there are 2.", "pipeline"),
        (1, {"dp": 2}, "Without GPUs each host has one worker; the layout needs 2 hosts, there are 1.", "data-"),
        (2, {"pp": 31}, "30 layers cannot be cut into 31 stages.", "pipeline-parallel-size=1"),
        (1, {"kv-cache-memory-bytes": 9 << 30}, "here0 has 8.5 GiB of memory left", "kv-cache-memory-bytes=536870912"),
        (1, {"max-model-len": 9000}, "The model allows 8,192 tokens of context", "max-model-len=8192"),
    ],
)
def test_an_impossible_wish_without_gpus_is_refused_with_the_nearest(
    machines: int, flags: dict[str, Value], problem: str, nearest: str
) -> None:
    offered = [HostSpec(f"here{i}", (), 16_000, 12_000) for i in range(machines)]
    outcome = plan(model("smollm2-135m"), offered, Wishes.from_flags(flags))

    assert outcome.problems[0].startswith(problem)
    assert outcome.nearest is not None
    assert nearest in outcome.nearest.sentence


def test_hosts_without_gpus_are_passed_over_beside_hosts_with_some() -> None:
    machines = [HostSpec("gateway", (), 16_000, 12_000), *hosts("a10")]

    outcome = plan(model("qwen2.5-7b"), machines, Wishes())

    assert [place.host for place in outcome.placement] == ["te1"]


def test_a_gpu_too_small_for_anything_is_refused() -> None:
    outcome = plan(model("smollm2-135m"), [HostSpec("te1", (GpuSpec(0, "Quadro K420", 300),))], Wishes())

    assert outcome.problems == ("The weights take 0.3 GiB; the GPU has 0.0 GiB free.",)


def test_an_unknown_gpu_is_planned_for_by_its_memory() -> None:
    machines = [HostSpec("te1", (GpuSpec(0, "NVIDIA X9000", 49152),))]

    assert plan(model("qwen2.5-14b"), machines, Wishes()).feasible
