"""Diagnosis: a log's text becomes one cause and what to do about it.

The logs are real ones; ``lines.tsv`` has single lines of failures that could not be made here.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from django.utils import translation

from deployments.diagnosis import SIGNATURES, Diagnosis, match
from deployments.diagnosis.signature import Kind, longest_literal
from deployments.rollout.phases import PhaseReader

LOGS = Path(__file__).parent / "logs"
WORKER = "(EngineCore pid=1) \x1b[36m(RayWorkerProc pid=2, ip=10.0.0.7)\x1b[0m (Worker_PP1 pid=2) "
ENGINE = "(EngineCore pid=1) ERROR 11-22 06:43:53 [core.py:1330] "
WRAPPED = "(APIServer pid=3) RuntimeError: Engine core initialization failed. See root cause above.\n"

# A number of the thirty collected failures (0: of another source), its name here, and a line that shows it.
EXAMPLES = [line.split("\t") for line in (LOGS / "lines.tsv").read_text().splitlines()]


def found(log: str) -> Diagnosis:
    diagnosis = match(log)
    assert diagnosis is not None
    return diagnosis


@pytest.mark.parametrize(
    ("log", "name"),
    [
        ("architecture-unknown", "model-type-unknown"),
        ("four-hosts-flashinfer-missing", "flashinfer-missing"),
        ("heads-not-divisible-by-tp", "heads-not-divisible"),
        ("max-model-len-beyond-config", "length-beyond-model"),
        ("memory", "cpu-kv-cache-too-small"),
        ("model-path-missing", "model-path-missing"),
        ("port-in-use", "port-in-use"),
        ("ray-host-cut-off", "ray-node-dead"),
        ("ray-worker-killed", "worker-died"),
    ],
)
def test_a_captured_failure_is_explained(log: str, name: str) -> None:
    assert found((LOGS / f"{log}.log").read_text()).id == name


def test_a_killed_worker_is_told_with_its_process_and_host_and_a_lost_host_with_its_address() -> None:
    log = (LOGS / "ray-worker-killed.log").read_bytes()
    killed = match(log.decode(), PhaseReader().feed(log).measured["workers"])
    assert killed is not None
    assert (killed.id, killed.host, killed.values) == ("worker-killed", "172.18.81.129", {"worker": "0", "pid": "260"})
    assert "process 260 on 172.18.81.129" in killed.cause
    assert Diagnosis.from_dict(killed.as_dict()) == killed
    assert found((LOGS / "ray-host-cut-off.log").read_text()).host == "172.18.81.127"


@pytest.mark.parametrize("log", sorted(LOGS.glob("*-ok.log")), ids=lambda path: path.stem)
def test_a_server_that_serves_has_no_diagnosis(log: Path) -> None:
    assert match(log.read_text()) is None


def test_a_start_that_is_under_way_has_no_diagnosis() -> None:
    lines = (LOGS / "four-hosts-pp4-ok.log").read_text().splitlines(keepends=True)
    told = [match("".join(lines[:count])) for count in range(0, len(lines), 7)]
    # While NCCL connects the GPUs nobody can say yet whether it hangs.
    assert {(diagnosis.id, diagnosis.severity) for diagnosis in told if diagnosis} == {
        ("nccl-hangs", "stalls")
    }


@pytest.mark.parametrize(("name", "line"), [(name, line) for _, name, line in EXAMPLES])
def test_a_line_that_explains_is_recognised_through_ray_and_before_the_wrapper(name: str, line: str) -> None:
    assert found(f"Traceback (most recent call last):\n{line}\n").id == name
    distant = found(f"{WORKER}{line}\n{WRAPPED}")
    assert (distant.id, distant.host) == (name, "10.0.0.7")


def test_every_signature_has_an_example_for_each_of_its_patterns() -> None:
    waits = {"placement-waits", "engine-stuck"}  # these need several lines; tests of their own follow
    for signature in SIGNATURES:
        lines = [line for _, name, line in EXAMPLES if name == signature.id]
        for pattern in signature.patterns if signature.id not in waits else ():
            assert any(re.search(pattern, line) for line in lines), pattern


def test_all_thirty_collected_failures_are_known() -> None:
    assert {int(number) for number, _, _ in EXAMPLES} | {29} >= set(range(1, 31))


def test_every_placeholder_of_a_text_is_a_group_of_every_pattern() -> None:
    for signature in SIGNATURES:
        texts = f"{signature.cause} {signature.fix} {' '.join(signature.options.values())}"
        wanted = set(re.findall(r"%\((\w+)\)s", texts)) - {"host"}
        for pattern in signature.patterns:
            assert wanted <= set(re.compile(pattern).groupindex), signature.id


def test_names_are_unique() -> None:
    names = [signature.id for signature in SIGNATURES]
    assert len(names) == len(set(names))


def test_the_literal_of_a_pattern_is_the_longest_that_is_always_there() -> None:
    assert longest_literal(r"seq len \((?P<asked>\d+)\), needs [\d.]+ GiB of cache") == " GiB of cache"
    assert longest_literal(r"actors? died (?:of a cold)?") == " died "


def test_the_first_error_of_a_worker_counts_and_not_the_last_line() -> None:
    log = (
        f"{ENGINE}OSError: [Errno 28] No space left on device\n"
        f"{WORKER}ERROR 11-22 06:43:53 [x.py:1] torch.OutOfMemoryError: CUDA out of memory.\n"
        f"{WORKER}ERROR 11-22 06:43:54 [x.py:1] ValueError: No available memory for the cache blocks\n"
    )
    diagnosis = found(log + WRAPPED)
    assert (diagnosis.id, diagnosis.process, diagnosis.host) == (
        "out-of-gpu-memory",
        "Worker_PP1",
        "10.0.0.7",
    )
    assert diagnosis.evidence == "torch.OutOfMemoryError: CUDA out of memory."


def test_a_consequence_counts_only_without_a_cause() -> None:
    log = f"{ENGINE}RayWorkerProc rank=[1] died unexpectedly, shutting down executor.\n{WRAPPED}"
    assert found(log).id == "worker-died"
    assert found(f"{log}OSError: [Errno 28] No space left on device\n").id == "disk-full"


def test_an_error_that_nobody_knows_is_quoted_with_its_host() -> None:
    diagnosis = found(
        f"{WORKER}ERROR 11-22 06:43:53 [x.py:1] my.odd.MoonError: wrong phase of the moon\n{WRAPPED}"
    )
    assert (diagnosis.id, diagnosis.host) == ("unknown-error", "10.0.0.7")
    assert "my.odd.MoonError: wrong phase of the moon" in diagnosis.cause


def test_an_option_that_vllm_refuses_in_new_words_is_quoted() -> None:
    diagnosis = found(
        "x.ValidationError: 1 validation error for ModelConfig\n  Value error, No moons. [type=value_error]\n"
    )
    assert (diagnosis.id, diagnosis.values["error"]) == ("unknown-error", "No moons.")


def test_the_host_of_an_error_inside_a_task_is_the_tasks() -> None:
    log = (
        f"{ENGINE}Traceback (most recent call last):\n"
        f"{ENGINE}ray.exceptions.RayTaskError(OSError): ray::W.run() (pid=8083, ip=10.0.0.9, actor_id=1)\n"
        f'{ENGINE}  File "x.py", line 1, in run\n'
        f"{ENGINE}ModuleNotFoundError: No module named 'flashinfer'\n"
    )
    assert found(log).host == "10.0.0.9"


def test_a_warning_that_mentions_an_error_is_no_failure() -> None:
    assert (
        match("(APIServer pid=1) WARNING 11-22 07:09:41 [x.py:1] ImportError: no triton, using another way\n")
        is None
    )
    assert (
        match(
            "Found ulimit of 20000. This can cause errors like `OSError: [Errno 24] Too many open files`.\n"
        )
        is None
    )


def test_what_failed_before_the_server_started_is_forgotten() -> None:
    before = f"{WORKER}ERROR 11-22 06:43:53 [x.py:1] RuntimeError: tried, and will try again\n"
    started = "(APIServer pid=1) INFO:     Application startup complete.\n"
    assert found(before).id == "unknown-error"
    assert match(before + started) is None
    assert (
        found(f"{before}{started}{WORKER}torch.OutOfMemoryError: CUDA out of memory.\n").id
        == "out-of-gpu-memory"
    )


def test_what_breaks_while_the_server_is_stopped_is_no_failure() -> None:
    broken = f"{ENGINE}vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.\n"
    stop = "(APIServer pid=1) INFO 11-22 11:34:53 [x.py:254] [shutdown] API server: shutdown triggered\n"
    assert match(stop + broken) is None
    assert found(broken + stop).id == "engine-failed"


def test_a_request_that_failed_is_no_failure_of_the_server() -> None:
    started = "(APIServer pid=1) INFO:     Application startup complete.\n"
    assert match(f"{started}(APIServer pid=1) ValueError: the prompt is too long\n") is None


def waiting(seconds: int) -> str:
    return f"{ENGINE}Waiting for creating a placement group of specs for {seconds} seconds. specs=[...]\n"


def test_waiting_for_gpus_a_second_time_is_a_stall_until_they_come() -> None:
    assert match(waiting(10)) is None
    stall = found(waiting(10) + waiting(30))
    assert (stall.id, stall.severity, stall.values["seconds"]) == ("placement-waits", "stalls", "30")
    assert (
        match(waiting(10) + waiting(30) + f"{WORKER}INFO 11-22 06:58:00 [x.py:1] world_size=4 rank=2 l\n")
        is None
    )


def stats(tokens: str, running: int) -> str:
    return (
        "(APIServer pid=1) INFO 11-22 06:58:49 [loggers.py:310] Engine 000: Avg prompt throughput: 0.0, "
        f"Avg generation throughput: {tokens} tokens/s, Running: {running} reqs, Waiting: 3 reqs, GPU KV\n"
    )


def test_an_engine_that_has_requests_and_makes_no_tokens_is_stuck() -> None:
    assert match(stats("0.0", 2) * 2) is None
    assert match(stats("0.0", 0) * 5) is None
    assert match(stats("0.0", 2) * 3 + stats("12.5", 2)) is None
    assert match(stats("0.0", 2) * 2 + stats("0.0", 0) + stats("0.0", 2) * 2) is None
    assert found(stats("0.0", 2) * 3).id == "engine-stuck"


def test_the_fix_names_the_value_that_fits_and_the_option_to_set() -> None:
    line = next(line for _, name, line in EXAMPLES if name == "context-too-long")
    diagnosis = found(line)
    assert diagnosis.options == {"max-model-len": "6544"}
    assert "6544" in diagnosis.fix
    assert (
        diagnosis.cause
        == "One request of 32768 tokens needs 6.00 GiB of KV cache, and 1.20 GiB are left for it."
    )


def test_a_diagnosis_is_kept_without_its_words() -> None:
    diagnosis = found((LOGS / "model-path-missing.log").read_text())
    kept = diagnosis.as_dict()
    assert Diagnosis.from_dict(kept) == diagnosis
    with translation.override("en"):
        assert (
            "/data/models/nope does not exist on the host that runs the server"
            in Diagnosis.from_dict(kept).cause
        )
    with pytest.raises(KeyError):
        Diagnosis.from_dict({**kept, "id": "forgotten"})


@pytest.mark.parametrize("filler", ["four-hosts-flashinfer-missing.log", "four-hosts-pp4-ok.log"])
def test_ten_megabytes_take_less_than_a_second(filler: str) -> None:
    text = (LOGS / filler).read_text().replace("startup complete", "").replace("shutdown triggered", "")
    log = text * (10_000_000 // len(text)) + "OSError: [Errno 28] No space left on device\n"
    began = time.process_time()
    assert found(log)
    assert time.process_time() - began < 1


def test_an_error_at_either_end_of_a_huge_log_is_found() -> None:
    noise = '(APIServer pid=1) INFO:     10.0.0.1:33500 - "POST /v1/completions HTTP/1.1" 200 OK\n' * 150_000
    assert found("OSError: [Errno 28] No space left on device\n" + noise).id == "disk-full"
    assert found(noise + "OSError: [Errno 28] No space left on device\n").id == "disk-full"


def test_kinds_are_believed_in_their_order() -> None:
    assert sorted(Kind) == [Kind.CAUSE, Kind.UNKNOWN, Kind.CONSEQUENCE, Kind.STALL, Kind.WRAPPER]
