"""Phases: a start's progress read from vLLM's log while it is written. The logs are real ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.diagnosis.lines import parse, plain
from deployments.rollout import prediction
from deployments.rollout.phases import LONGEST_LINE, PHASES, SIGNS, PhaseReader, Progress

LOGS = Path(__file__).parent / "logs"
FOUR_HOSTS = (LOGS / "four-hosts-pp4-ok.log").read_bytes()


def read(log: bytes) -> Progress:
    return PhaseReader().feed(log)


def test_a_start_on_four_hosts_is_read_to_its_end_with_vllms_own_figures() -> None:
    progress = read(FOUR_HOSTS)
    assert (progress.phase, progress.percent) == ("started", 99)
    assert progress.measured == {
        "version": "0.26.0",
        "architecture": "Qwen2ForCausalLM",
        "max_model_len": 4096,
        "world_size": 4,
        "weights_gib": 7.66,  # the last stage, with the lm_head, is the fullest
        "compile_seconds": 12.23,
        "kv_gib": 96.17,  # and therefore has the least left
        "kv_tokens": 2_086_608,
        "max_concurrency": 509.43,
        "graphs_gib": 0.2,
        "init_seconds": 30.46,
        # Ray left out lines that are alike.
        "workers": {"1": ["172.18.81.128", 16391], "2": ["172.18.81.129", 16393], "3": ["172.18.81.127", 16395]},
        "each": {
            "172.18.81.128/16391": {"weights_gib": 6.21, "kv_gib": 97.62},
            "172.18.81.127/16395": {"weights_gib": 7.66, "kv_gib": 96.17},
        },
    }


def test_every_phase_of_that_start_is_seen_in_its_order() -> None:
    reader, seen = PhaseReader(), [""]
    for line in FOUR_HOSTS.splitlines(keepends=True):
        phase = reader.feed(line).phase
        if phase != seen[-1]:
            seen.append(phase)
    assert seen[1:] == list(PHASES)


@pytest.mark.parametrize(
    ("log", "phase", "percent"),
    [
        ("four-hosts-tp4-eager-ok", "started", 99),
        ("one-host-cpu-stopped-ok", "started", 99),
        ("four-hosts-flashinfer-missing", "weights", 60),
        ("memory", "weights", 60),
        ("heads-not-divisible-by-tp", "configuration", 7),
        ("max-model-len-beyond-config", "configuration", 6),
        ("port-in-use", "starting", 3),
    ],
)
def test_a_log_is_read_as_far_as_its_start_came(log: str, phase: str, percent: int) -> None:
    progress = read((LOGS / f"{log}.log").read_bytes())
    assert (progress.phase, progress.percent) == (phase, percent)


@given(st.lists(st.integers(0, len(FOUR_HOSTS)), max_size=30))
def test_where_the_log_is_cut_makes_no_difference(cuts: list[int]) -> None:
    reader, edges = PhaseReader(), [0, *sorted(cuts), len(FOUR_HOSTS)]
    for start, end in pairwise(edges):
        reader.feed(FOUR_HOSTS[start:end])
    assert reader.progress == read(FOUR_HOSTS)


def test_progress_bars_move_the_percentage_within_their_phase() -> None:
    reader = PhaseReader()
    bar = "\rLoading safetensors checkpoint shards:  {}% Completed | {}/8 [00:01<00:03,  1.9it/s]\r"
    assert reader.feed(bar.format(0, 0).encode()).percent == 22
    progress = reader.feed(bar.format(50, 4).encode())
    assert (progress.phase, progress.percent, progress.measured["shards"]) == ("weights", 41, "4/8")
    assert reader.feed(bar.format(100, 8).encode()).percent == 60


def test_it_never_goes_back() -> None:
    reader = PhaseReader()
    reader.feed(b"INFO 11-22 06:58:20 [x.py:1] Available KV cache memory: 97.62 GiB\n")
    progress = reader.feed(
        b"(Worker_TP1 pid=1) INFO 11-22 06:58:20 [x.py:1] Model loading took 6.21 GiB memory\n"
    )
    assert (progress.phase, progress.percent) == ("memory", 78)
    each = {"/0": {"kv_gib": 97.62}, "/1": {"weights_gib": 6.21}}
    assert progress.measured == {"kv_gib": 97.62, "weights_gib": 6.21, "each": each}


def test_the_one_line_form_of_newer_releases_is_read() -> None:
    line = b"GPU KV cache size: 2,086,608 tokens, Maximum concurrency for 4,096 tokens per request: 509.43x\n"
    assert read(line).measured == {"kv_tokens": 2_086_608, "max_concurrency": 509.43}
    assert read(b"CPU KV cache size: 34,944 tokens\n").measured == {"kv_tokens": 34_944}


def test_the_figures_of_a_processor_are_read_too() -> None:
    measured = read((LOGS / "one-host-cpu-stopped-ok.log").read_bytes()).measured
    assert measured["version"] == "0.32.0"
    assert (measured["kv_tokens"], measured["max_concurrency"], measured["shards"]) == (23_296, 2.84, "1/1")
    assert measured["kv_gib"] == 0.5


def test_a_reader_goes_on_where_another_was() -> None:
    half = FOUR_HOSTS.index(b"\n", len(FOUR_HOSTS) // 4) + 1
    reached = read(FOUR_HOSTS[:half])
    assert 0 < reached.percent < 99
    assert PhaseReader(reached).feed(FOUR_HOSTS[half:]) == read(FOUR_HOSTS)


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    reader = PhaseReader()
    for _ in range(64):
        reader.feed(b"x" * LONGEST_LINE)
    assert len(reader._rest) == LONGEST_LINE
    assert reader.feed(b"\nApplication startup complete.\n").percent == 99


@given(st.binary(max_size=2000))
def test_any_bytes_are_read(data: bytes) -> None:
    assert read(data + b"\n").percent in range(100)


def test_every_sign_belongs_to_a_phase_and_they_rise() -> None:
    assert {sign.phase for sign in SIGNS} == set(PHASES)
    assert [sign.percent for sign in SIGNS] == sorted(sign.percent for sign in SIGNS)


def test_a_line_that_came_through_ray_is_told_apart() -> None:
    line = parse(
        plain(
            "(EngineCore pid=1) \x1b[36m(RayWorkerProc pid=2, ip=172.18.81.129)\x1b[0m (Worker_PP2 pid=2) "
            "WARNING 11-22 06:58:20 [x.py:10] Something (odd).\x1b[32m [repeated 3x across cluster]\x1b[0m"
        )
    )
    assert line == ("Worker_PP2", "172.18.81.129", "WARNING", "Something (odd).", "2")


def test_a_line_of_rays_own_is_told_apart() -> None:
    line = parse("(EngineCore pid=1) 2026-11-22 06:57:39,531\tINFO worker.py:1833 -- Connecting to X...")
    assert line == ("EngineCore", "", "INFO", "Connecting to X...", "1")


def test_a_line_without_any_head_is_all_text() -> None:
    assert (
        parse("OSError: [Errno 98] Address already in use").text
        == "OSError: [Errno 98] Address already in use"
    )


def _told(rank: int, tag: str, said: str) -> str:
    return f"(RayWorkerProc pid=26{rank}, ip=10.0.0.{rank}) ({tag} pid=26{rank}) INFO 11-25 02:23:29 [x.py:1] {said}\n"


CUDA = ("Model loading took {} GiB memory and 1.37 seconds", "Available KV cache memory: {} GiB")
CUDA_0_32 = ("Model loading took {} GiB and 1.37 seconds", "Available KV cache memory: {} GiB")
CPU_0_32 = ("Loading weights took 0.{} seconds", "Explicitly set ({}/23.54) GiB for KV cache on node 0.")


@pytest.mark.parametrize("lines", [CUDA, CUDA_0_32, CPU_0_32], ids=["0.26", "0.32", "CPU"])
def test_each_worker_says_its_own_figures(lines: tuple[str, str]) -> None:
    """As vLLM prints them through Ray where that leaves nothing out, of two stages."""
    log = ""
    for rank, (weights, cache) in enumerate([(6.0, 12.5), (7.5, 11.0)]):
        log += _told(rank, "Worker", f"rank {rank} in world size 2 is assigned as DP rank 0, PP rank {rank}")
        log += _told(rank, f"Worker_PP{rank}", lines[0].format(weights))
        log += _told(rank, f"Worker_PP{rank}", lines[1].format(cache))
    measured = read(log.encode()).measured
    places = [{"host": f"te{rank + 1}", "gpu": 0, "rank": rank, "weights_bytes": 6 << 30, "kv_bytes": 12 << 30}
              for rank in (1, 0)]
    first, second = prediction.each({"placement": places}, measured)
    assert (first.rank, first.place, second.place) == (0, "te1, GPU 0", "te2, GPU 0")
    assert [row.measured for row in (first.figures[1], second.figures[1])] == ["12.50 GiB", "11.00 GiB"]
    if lines is not CPU_0_32:  # there no worker says what its weights take
        assert second.figures[0].measured == "7.50 GiB"
        assert (second.figures[0].difference, second.figures[0].is_far) == ("+25.0 %", True)
    assert prediction.each({"placement": places}, {}) == []
    assert prediction.each({"placement": places[:1]}, measured) == []
