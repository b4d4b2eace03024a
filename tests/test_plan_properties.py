"""What holds for every plan, whatever the model, the GPUs and the wishes."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.plan import GpuSpec, HostSpec, Plan, Wishes, plan
from deployments.plan.layouts import tensor_problem
from deployments.plan.memory import even_partition
from deployments.plan.search import NVLINK_GBPS
from deployments.plan.wishes import Value
from tests.plans import GPUS, MODELS, model

_MODELS = {name: model(name) for name in MODELS}

gpus = st.builds(
    lambda kind, used: (GPUS[kind], used if used < GPUS[kind][1] else GPUS[kind][1]),
    st.sampled_from(sorted(GPUS)),
    st.sampled_from([0, 0, 0, 500, 9_000, 30_000, 200_000]),
)
uniform = st.builds(lambda gpu, count: [gpu] * count, gpus, st.integers(1, 8))
rows = uniform | st.lists(gpus, min_size=1, max_size=4)
machines = st.lists(rows, min_size=1, max_size=4).map(
    lambda rows: [
        HostSpec(f"te{i}", tuple(GpuSpec(j, g[0], g[1], used, g[2]) for j, (g, used) in enumerate(row)))
        for i, row in enumerate(rows)
    ]
)
wishes = st.fixed_dictionaries(
    {},
    optional={
        "tensor-parallel-size": st.integers(1, 9),
        "pipeline-parallel-size": st.integers(1, 6),
        "data-parallel-size": st.integers(1, 3),
        "max-model-len": st.sampled_from([1, 17, 2048, 4096, 32768, 131072, 1_000_000]),
        "max-num-seqs": st.sampled_from([1, 16, 64, 256, 1024]),
        "gpu-memory-utilization": st.sampled_from([0.1, 0.5, 0.75, 0.9, 0.95, 1.0]),
        "enforce-eager": st.booleans(),
        "kv-cache-dtype": st.sampled_from(["auto", "fp8"]),
        "kv-cache-memory-bytes": st.sampled_from(["512M", "4G", "64G"]),
    },
)
networks = st.sampled_from([None, 1, 10, 100, 400, 3600])


def invent(name: str, hosts: list[HostSpec], flags: dict[str, Value], gbps: float | None) -> Plan:
    return plan(_MODELS[name], hosts, Wishes.from_flags(flags), gbps)


every = given(st.sampled_from(MODELS), machines, wishes, networks)
often = settings(max_examples=40, deadline=None)


@often
@every
def test_a_feasible_plan_fits_into_every_gpu_beside_the_others(
    name: str, hosts: list[HostSpec], flags: dict[str, Value], gbps: float | None
) -> None:
    outcome = invent(name, hosts, flags, gbps)
    found = {(host.name, gpu.index): gpu for host in hosts for gpu in host.gpus}

    for place in outcome.placement:
        assert place.gpu is not None
        gpu = found[place.host, place.gpu]
        share = float(outcome.flags["gpu-memory-utilization"])
        held = place.weights_bytes + place.kv_bytes + place.overhead_bytes
        assert held <= gpu.requested(share)
        assert gpu.requested(share) + gpu.memory_used_mib * (1 << 20) <= gpu.usable_bytes


@often
@every
def test_a_feasible_layout_obeys_the_rules(
    name: str, hosts: list[HostSpec], flags: dict[str, Value], gbps: float | None
) -> None:
    outcome = invent(name, hosts, flags, gbps)
    if not outcome.layout:
        return
    config, (tensor, pipeline, replicas) = _MODELS[name], outcome.layout

    assert config.heads % tensor == 0
    assert tensor_problem(config, tensor, Wishes()) == ""
    assert pipeline <= len(config.layers)
    assert tensor in (flags.get("tensor-parallel-size"), tensor)
    assert pipeline == flags.get("pipeline-parallel-size", pipeline)
    assert replicas == flags.get("data-parallel-size", replicas)
    assert outcome.kv_tokens >= outcome.max_model_len == flags.get("max-model-len", outcome.max_model_len)
    assert outcome.max_model_len <= config.longest


@often
@every
def test_ranks_are_disjoint_and_cover_all_layers(
    name: str, hosts: list[HostSpec], flags: dict[str, Value], gbps: float | None
) -> None:
    outcome = invent(name, hosts, flags, gbps)
    if not outcome.layout:
        return
    tensor, pipeline, replicas = outcome.layout
    seats = [(place.host, place.gpu) for place in outcome.placement]

    assert len(seats) == len(set(seats)) == tensor * pipeline * replicas
    assert [place.rank for place in outcome.placement] == list(range(len(seats)))
    for replica in range(replicas):
        spans = sorted({place.layers for place in outcome.placement if place.replica == replica})
        assert len(spans) == pipeline
        assert [start for start, _end in spans] == [0, *(end for _start, end in spans[:-1])]
        assert spans[-1][1] == len(_MODELS[name].layers)


@often
@every
def test_the_layers_are_cut_as_vllm_will_cut_them(
    name: str, hosts: list[HostSpec], flags: dict[str, Value], gbps: float | None
) -> None:
    outcome = invent(name, hosts, flags, gbps)
    if not outcome.layout:
        return
    sizes = {place.stage: place.layers[1] - place.layers[0] for place in outcome.placement}
    told = outcome.environment.get("VLLM_PP_LAYER_PARTITION")

    if told:
        assert list(sizes.values()) == [int(size) for size in told.split(",")]
    else:
        assert tuple(sizes.values()) == even_partition(len(_MODELS[name].layers), outcome.layout.pipeline)


@often
@every
def test_tensor_parallelism_leaves_a_host_only_when_asked_or_over_a_fast_network(
    name: str, hosts: list[HostSpec], flags: dict[str, Value], gbps: float | None
) -> None:
    outcome = invent(name, hosts, flags, gbps)
    stages: dict[tuple[int, int], set[str]] = {}
    for place in outcome.placement:
        stages.setdefault((place.replica, place.stage), set()).add(place.host)

    if any(len(names) > 1 for names in stages.values()):
        assert "tensor-parallel-size" in flags or (gbps or 0) >= NVLINK_GBPS or _nothing_else_fits(outcome)


def _nothing_else_fits(outcome: Plan) -> bool:
    """Whether every other layout that fits would leave its host for tensor parallelism as well."""
    possible = [other for other in outcome.alternatives if other.kv_tokens]
    return all(other.layout.tensor > 1 for other in possible)


@often
@every
def test_a_refusal_says_why_and_every_answer_is_json(
    name: str, hosts: list[HostSpec], flags: dict[str, Value], gbps: float | None
) -> None:
    outcome = invent(name, hosts, flags, gbps)
    shape = outcome.to_json()

    assert json.loads(json.dumps(shape)) == shape
    assert shape["feasible"] is (not shape["problems"])
    assert shape["feasible"] is bool(shape["reasons"])
    assert all(text.endswith(".") for text in (*shape["problems"], *shape["reasons"]))
    assert all(other["why_not"].endswith(".") for other in shape["alternatives"])


@often
@every
def test_the_nearest_wish_is_feasible(
    name: str, hosts: list[HostSpec], flags: dict[str, Value], gbps: float | None
) -> None:
    outcome = invent(name, hosts, flags, gbps)
    if not outcome.nearest or not (outcome.nearest.flags or outcome.nearest.drop):
        return

    kept = {key: value for key, value in flags.items() if key not in outcome.nearest.drop}
    assert invent(name, hosts, {**kept, **outcome.nearest.flags}, gbps).feasible


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MODELS), st.sampled_from(sorted(GPUS)), st.integers(0, 100_000))
def test_more_memory_held_by_others_never_leaves_more_room(name: str, kind: str, used: int) -> None:
    product, total, capability = GPUS[kind]

    def room(held: int) -> int:
        host = HostSpec("te1", (GpuSpec(0, product, total, min(held, total), capability),))
        return plan(_MODELS[name], [host], Wishes()).kv_tokens

    assert room(used) <= room(0)
