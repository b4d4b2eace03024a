"""What model servers say of themselves: read whatever it looks like, asked for within bounds, told of all copies."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.models import Deployment
from deployments.telemetry import figures, measured
from deployments.telemetry.figures import Interval, Reading, between, parse, quantile
from deployments.telemetry.sampler import MOST, Sampler
from nodes.models import Cluster, Node
from nodes.telemetry import history, store

CAPTURES = Path(__file__).parent / "engine_metrics"
NOW = 1_790_000_000.0
TEXT = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000.0
vllm:generation_tokens_total{engine="0",model_name="m"} 2e3
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 10.0
vllm:inter_token_latency_seconds_bucket{le="0.01",model_name="m"} 7.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5
process_cpu_seconds_total 3.0
"""


def test_the_exposition_is_read_over_all_engines_of_a_server() -> None:
    read = parse(TEXT)
    assert (read.running, read.waiting, read.kv) == (5, 1, 0.375)
    assert (read.prompt, read.generation, read.preemptions) == (1000, 2000, 4)
    assert read.ttft == {0.1: 5, inf: 10}
    assert read.itl == {0.01: 7}


@given(st.text(max_size=300) | st.from_regex(r"vllm:[a-z_]{1,30}(\{[^\n]{0,40}\})? [^\n]{0,12}", fullmatch=True))
def test_nonsense_is_passed_over(text: str) -> None:
    read = parse(text)
    assert read.running is None or read.running >= 0
    assert json.dumps(figures.sample([between(None, read, 3)], NOW))


def test_what_no_server_would_say_does_not_get_far() -> None:
    many = "".join(f'vllm:time_to_first_token_seconds_bucket{{le="{n}"}} 1\n' for n in range(100_000))
    read = parse(many + "vllm:num_requests_running NaN\nvllm:kv_cache_usage_perc -1\n")
    assert len(read.ttft) <= 200
    assert (read.running, read.kv) == (None, None)


def test_between_two_readings_there_are_rates_and_times() -> None:
    before = Reading(running=1, prompt=100, generation=10, preemptions=0, ttft={0.1: 1, 0.2: 1})
    now = Reading(running=2, waiting=0, kv=0.5, prompt=400, generation=70, preemptions=2, ttft={0.1: 1, 0.2: 11})
    told = figures.sample([between(before, now, 3)], NOW)
    assert told == {
        "t": NOW, "running": 2, "waiting": 0, "kv": 0.5, "prompt": 100, "generation": 20, "preemptions": 2,
        "ttft50": 0.15, "ttft95": 0.195, "itl50": None, "itl95": None}


def test_a_server_that_was_restarted_says_nothing_of_the_time_before() -> None:
    interval = between(Reading(prompt=400, ttft={inf: 9}), Reading(prompt=5, ttft={inf: 2}), 3)
    assert (interval.prompt, interval.ttft) == (None, {})
    assert between(None, Reading(prompt=5), 3).prompt is None


def test_copies_are_told_together() -> None:
    one = Interval(3, Reading(running=1, kv=0.2), 3, 30, 0, {0.1: 1.0, inf: 1.0}, {})
    other = Interval(3, Reading(running=2, kv=0.9), 6, 60, 1, {0.1: 0.0, inf: 1.0}, {})
    told = figures.sample([one, other], NOW)
    assert (told["running"], told["kv"], told["prompt"], told["generation"]) == (3, 0.9, 3, 30)
    assert told["ttft50"] == 0.1


@given(st.lists(st.floats(0.001, 9.9), min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_value_that_it_is_for(values: list[float], share: float) -> None:
    bounds = [0.01, 0.1, 0.5, 1, 5, 10, inf]
    found = quantile({bound: float(sum(value <= bound for value in values)) for bound in bounds}, share)
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    upper = next(bound for bound in bounds if exact <= bound)
    assert found is not None
    assert max((bound for bound in bounds if bound < upper), default=0) <= found <= upper


def test_what_vllm_0_32_says_after_six_chats_of_forty_tokens_is_read_whole() -> None:
    read = parse((CAPTURES / "vllm-0.32.0-cpu.txt").read_text())
    assert (read.running, read.waiting, read.kv, read.preemptions) == (0, 0, 0, 0)
    assert (read.prompt, read.generation) == (222, 240)
    assert (read.ttft[inf], read.itl[inf]) == (6, 234)  # the first token of each is not between two
    assert 0.1 < (quantile(read.ttft, 0.5) or 0) < 0.25
    assert 0.01 < (quantile(read.itl, 0.95) or 0) < 0.05


# --- asking ---


@pytest.fixture
def deployment(db: None) -> Deployment:
    node = Node.objects.create(name="te1", address="10.0.0.1", user="root", state="ready")
    made = Deployment.objects.create(
        name="m", model="demo", cluster=Cluster.objects.create(name="te1", head=node), port=20700, state="ready")
    for number, state in enumerate(["ready", "draining", "waiting"], 1):
        made.replicas.create(number=number, node=node, port=20700 + number, state=state)
    return made


def look(answer: Any, *times: float) -> list[httpx.Request]:
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer(request) if callable(answer) else httpx.Response(200, text=answer)

    sampler = Sampler(httpx.MockTransport(handle))
    for at in times:
        sampler.look(at)
    return asked


@pytest.mark.valkey
def test_each_copy_in_service_is_asked_with_its_key(deployment: Deployment) -> None:
    deployment.refresh_from_db()  # the key as it comes from there
    asked = look(TEXT, NOW, NOW + 3)
    assert {request.url.port for request in asked} == {20701, 20702}
    assert {request.headers["authorization"] for request in asked} == {f"Bearer {deployment.api_key.reveal()}"}
    told = store.others()
    assert told[f"e{deployment.pk}"]["running"] == 10
    assert {told[f"r{copy.pk}"]["running"] for copy in deployment.replicas.filter(state="ready")} == {5}
    source = history.Source("x", measured._deployment(deployment.pk))
    assert len(store.between(source.stream, 0)) == 2


@pytest.mark.valkey
@pytest.mark.parametrize("answer", [
    lambda request: httpx.Response(500, text=TEXT),
    lambda request: httpx.Response(200, content=b"x" * (MOST + 1)),
    lambda request: (_ for _ in ()).throw(httpx.ConnectError("away")),
], ids=["error", "endless", "away"])  # fmt: skip
def test_a_server_that_gives_no_answer_is_left_out(deployment: Deployment, answer: Any) -> None:
    look(answer, NOW)
    assert store.others() == {}
