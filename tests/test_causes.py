"""Why a start failed: its first real error, the phase, and the node by name; and a start that hangs fails soon."""

from __future__ import annotations

import pytest

from controlplane import streams
from controlplane.problems import Problem
from deployments.models import Deployment
from deployments.rollout import causes
from deployments.rollout.phases import Progress
from nodes.models import Cluster, Job, Node

pytestmark = [pytest.mark.valkey, pytest.mark.django_db]

LOADING = "INFO 11-22 06:28:21 [x.py:1] Starting to load model /m...\n"
TAG = "(EngineCore pid=7) (RayWorkerProc pid=8, ip=10.0.0.2) "
NO_MEMORY = "ERROR 11-22 06:28:30 [x.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
LAST = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
EXECUTOR = "(EngineCore pid=7) RuntimeError: Executor failed.\n"
WAITS = "INFO 11-22 06:28:30 [x.py:1] Waiting for creating a placement group of specs for {} seconds. specs=[]\n"
NCCL = "INFO 11-22 06:28:21 [x.py:1] vLLM is using nccl==2.27.5\n"


@pytest.fixture
def job() -> Job:
    node = Node.objects.create(name="te1", address="10.0.0.1")
    Node.objects.create(name="te2", address="te2.example", facts_json={"addresses": ["10.0.0.2/24"]})
    return Job.objects.create(node=node, name="serve", state="exited", exit_status=1)


def prints(job: Job, text: str) -> None:
    key = streams.log_key(job.pk)
    streams.append(key, streams.end(key) or 0, text.encode())


def test_a_failure_says_phase_host_and_the_first_error(job: Job) -> None:
    prints(job, LOADING + TAG + NO_MEMORY + LAST)
    told = causes.of_start(job).partition("\n")[0]
    assert told.startswith("Loading the weights: ")
    assert "te2" in told
    assert "See root cause above" not in told


def test_the_servers_own_host_is_not_named_again(job: Job) -> None:
    prints(job, LOADING + NO_MEMORY + LAST)
    assert "te" not in causes.of_end(job).partition(":")[0]


def test_of_a_worker_that_was_killed_its_node_and_process_are_told(job: Job) -> None:
    deployment = Deployment.objects.create(name="m", cluster=Cluster.objects.create(name="c", head=job.node), port=1)
    workers = {"0": ["", 71], "1": ["10.0.0.2", 72]}
    deployment.replicas.create(number=1, node=job.node, port=1, server=job, measured={"workers": workers})
    prints(job, "(EngineCore pid=7) RayWorkerProc rank=[1] died unexpectedly, shutting down executor.\n" + EXECUTOR)
    told = causes.of_end(job).partition("\n")[0]
    assert told.startswith("Worker 1 of the engine, process 72 on te2, died")


def test_a_start_that_waits_for_gpus_in_vain_fails_after_seconds(job: Job) -> None:
    prints(job, WAITS.format(10))
    causes.check_goes_on(job, Progress("ray", 13))
    prints(job, WAITS.format(20))
    with pytest.raises(Problem, match="Waiting for Ray to place the workers: vLLM has waited 20 s for GPUs"):
        causes.check_goes_on(job, Progress("ray", 13))


def test_what_may_hang_is_given_a_quiet_minute(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("deployments.rollout.causes.time.time", lambda: now[0])
    prints(job, NCCL)
    causes.check_goes_on(job, Progress("workers", 18))
    now[0] += 50
    prints(job, "INFO 11-22 06:28:21 [x.py:1] something\n")
    causes.check_goes_on(job, Progress("workers", 18))
    now[0] += 50
    causes.check_goes_on(job, Progress("workers", 18))
    now[0] += 11
    with pytest.raises(Problem, match="Connecting the workers: The GPUs do not find each other"):
        causes.check_goes_on(job, Progress("workers", 18))


def test_a_long_silence_while_weights_load_is_no_failure(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("deployments.rollout.causes.time.time", lambda: now[0])
    prints(job, LOADING)
    for _ in range(3):
        causes.check_goes_on(job, Progress("weights", 22))
        now[0] += 600
