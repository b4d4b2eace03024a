"""Real Ray over four hosts and real vLLM over two of them, made in a browser; then whatever can break is broken.

One lab, one Quarterdeck and one deployment for all tests: a start takes most of a minute on two cores. Each test
leaves the deployment as it found it: ready. Three settings differ from a server's: what ended is started again after
2 s and not 10 (RESTART_DELAY), Ray gives up a node that is silent after 20 s and not 65 (RAY_health_check_*), and
vLLM's engine is forked, which saves loading it a second time.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import shot, signed_in
from tests.lab import Lab, engine, pip_settings
from tests.lab.deck import LabDeck
from tests.lab.host import until
from tests.lab.serving import GCS, RAYLET, SELDOM, SERVER, WORKER, Served, kill, pids
from tests.support.deck import ROOT
from tests.support.sshd import free_port

pytestmark = [pytest.mark.browser, pytest.mark.engine, pytest.mark.lab, pytest.mark.sshd, pytest.mark.valkey]

#: Seconds that a host and the control plane stay away; QUARTERDECK_TEST_AWAY=300 makes it minutes.
AWAY = int(os.environ.get("QUARTERDECK_TEST_AWAY", "12"))
STARTED_MS = 600_000  # most of a minute where nothing else runs
QUICK = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "3000",
         "RAY_health_check_failure_threshold": "5", "VLLM_WORKER_MULTIPROCESSING_METHOD": "fork"}
OPTIONS = {"kv-cache-memory-bytes": 64 << 20, "max-model-len": 512, "max-num-seqs": 4}
_KEY = """
from django.contrib.auth import get_user_model
from deployments.gateway import keys
answer = keys.create(get_user_model().objects.get(username="admin"), "lab")[1]
"""
_VIEW = """
from nodes.clusters.steps import last_view
from nodes.models import Cluster
answer = [node.alive for node in last_view(Cluster.objects.get(name="four")).nodes]
"""


_LIVE = """
import hashlib
import os
from controlplane import streams
data = b"".join(chunk.data for chunk in streams.read(streams.log_key(job), 0))
answer = [len(data), hashlib.sha256(data).hexdigest()]
"""
_START_ALONE = """
from deployments import revisions
from deployments.rollout import stories as rollout
from deployments.spec import Spec
made = revisions.create(Spec.from_dict(
    {"name": "alone", "model": "demo", "node": "te5", "executor": "mp", "options": options}), None, "")
answer = rollout.start(made, None).pk
"""
_STOP_ALONE = """
from deployments.rollout import stories as rollout
from deployments.models import Deployment
answer = rollout.stop(Deployment.objects.get(name="alone"), None).pk
"""
_ALONES_LOG = """
from deployments.models import Replica
from nodes import logs
answer = logs.tail(Replica.objects.get(deployment__name="alone").server)
"""


class Started(NamedTuple):
    """The deployment, and what the two who pressed Start at once were shown."""

    served: Served
    first: dict[str, Any]  # how it was then
    page: str
    alerts: list[str]


@pytest.fixture(scope="module")
def lab(node_root: Path) -> Iterator[Lab]:
    """te1 to te4 for the cluster; te5 stays alone."""
    engine.install(node_root)
    with Lab(5, share=engine.shared(node_root), settings={**pip_settings(), **QUICK}) as five:
        yield five


@pytest.fixture(scope="module")
def deck(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Iterator[LabDeck]:
    running = LabDeck(tmp_path_factory.mktemp("cluster-deck"), RESTART_DELAY="2")
    try:
        running.wait_for_address()
        running.register(*lab.hosts)
        for run in [running.prepare(host.name) for host in lab.hosts]:
            assert running.finished(run, 120)["state"] == "done"
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def started(browser: Browser, lab: Lab, deck: LabDeck) -> Started:
    """A cluster of four, formed, and a deployment over two of its hosts, started by two people at once."""
    with ExitStack() as open_pages:
        ada, bob = (open_pages.enter_context(signed_in(browser, deck)) for _person in range(2))
        form_cluster(ada)
        draft(ada)
        bob.goto("/deployments/small/")
        press_start_at_once(ada, bob)
        for page in (ada, bob):
            expect(page.locator("#head .state")).to_contain_text("rolling out", timeout=60_000)
        until(lambda: any(alerts_of(page) for page in (ada, bob)), 30, "one of them is told that the other was faster")
        alerts = [alerts_of(page) for page in (ada, bob)]
        for page in (ada, bob):  # which draw charts, with processor time that the engine could start with
            page.goto("about:blank")
        served = Served(lab, deck, "small", str(deck.do(_KEY)))
        until(lambda: "rolling_out" not in served.now()["states"], STARTED_MS / 1000, "the start is over", SELDOM)
        ada.goto("/deployments/small/")
        expect(ada.locator("#head .state")).to_contain_text("ready")
        expect(ada.locator("#predicted")).to_contain_text("Plan and reality")
        shot(ada, "cluster-deployment-ready")
        return Started(served, served.now(), ada.locator("main").inner_text(), alerts)


@pytest.fixture(scope="module")
def alone(deck: LabDeck) -> int:
    """The run that starts a second deployment, on te5 alone."""
    return int(deck.do(_START_ALONE, options=OPTIONS))


@pytest.fixture
def served(started: Started) -> Served:
    return started.served


def form_cluster(page: Page) -> None:
    page.goto("/clusters/new/")
    page.fill("[name=name]", "four")
    for name in ("te1", "te2", "te3", "te4"):
        page.check(f"[name=nodes][value={name}]")
    page.check("[name=head][value=te1]")
    page.get_by_role("button", name="Make and start").click()
    page.wait_for_url("**/clusters/four/")
    expect(page.locator("#head .state")).to_contain_text("ready", timeout=STARTED_MS)
    shot(page, "cluster-ready")


def draft(page: Page) -> None:
    page.goto("/deployments/new/")
    page.fill("[name=name]", "small")
    page.select_option("[name=where]", "cluster:four")
    page.fill("[name=max_model_len]", str(OPTIONS["max-model-len"]))
    page.fill("[name=max_num_seqs]", str(OPTIONS["max-num-seqs"]))
    page.get_by_text("By hand", exact=True).click()
    page.fill("[name=tensor_parallel_size]", "1")
    page.fill("[name=pipeline_parallel_size]", "2")
    page.fill("[name=copies]", "1")
    page.fill("[name=extra]", f"kv-cache-memory-bytes={OPTIONS['kv-cache-memory-bytes']}")
    page.get_by_role("button", name="Save as draft").click()
    page.wait_for_url("**/deployments/small/")


def press_start_at_once(*pages: Page) -> None:
    """Both buttons are pressed by their pages' own clocks, which are this machine's."""
    at = (time.time() + 1) * 1000
    for page in pages:
        button = page.get_by_role("button", name="Start", exact=True)
        expect(button).to_be_visible()
        button.evaluate("(button, at) => { setTimeout(() => button.click(), at - Date.now()) }", at)


def alerts_of(page: Page) -> str:
    return page.locator("#alerts").inner_text().strip()


def test_one_model_is_served_by_two_hosts_of_four_and_the_page_says_what_vllm_said(
    started: Started, deck: LabDeck, lab: Lab
) -> None:
    served, first = started.served, started.first
    assert deck.do(_VIEW) == [True] * 4
    assert len(served.workers()) == 2
    assert sorted(served.now()["hosts"]) == sorted(served.workers()), "the workers are where Quarterdeck has them"
    assert f"workers on {', '.join(first['hosts'])}" in started.page
    assert "Plan and reality" in started.page
    assert f"{first['measured']['kv_tokens']:,}" in started.page.partition("Plan and reality")[2]
    log = lab["te1"].read(f"/root/.quarterdeck/jobs/{first['server']}/log").decode()
    assert f"KV cache size: {first['measured']['kv_tokens']:,} tokens" in log
    assert served.answer()


def test_two_people_who_press_start_at_once_start_one_server(started: Started, lab: Lab) -> None:
    now = started.served.now()
    assert now["starts"] == 1
    assert len(pids(lab["te1"], SERVER)) == 1
    refused = [alert for alert in started.alerts if "cannot be started now" in alert]
    assert len(refused) == 1, started.alerts


def test_a_killed_ray_worker_is_named_with_its_host_and_the_model_comes_back(served: Served) -> None:
    host = served.other_host()
    (pid,) = pids(host, WORKER)
    told = served.after(lambda: kill(host, WORKER))
    assert f"process {pid} on {host.name}, died" in told.failed
    assert told.ray == "", "Ray was well all the time"


def test_a_killed_gcs_and_a_killed_raylet_are_named_and_the_whole_cluster_and_the_model_come_back(
    served: Served, lab: Lab
) -> None:
    """At once, on two hosts, since they share one recovery. One node's Ray alone dies in tests/test_clusters.py."""
    host = served.other_host()

    def kill_both() -> None:
        kill(host, RAYLET)
        kill(lab["te1"], GCS)

    told = served.after(kill_both)
    assert f"{host.name}: Ray ended: raylet was killed by signal 9" in told.ray
    assert "te1: Ray ended: gcs_server was killed by signal 9" in told.ray
    assert told.failed
    assert served.deck.do(_VIEW) == [True] * 4


def test_a_killed_server_of_vllm_comes_back_on_the_ray_that_is_there(served: Served, lab: Lab) -> None:
    raylets = {host.name: pids(host, RAYLET) for host in lab.hosts}
    told = served.after(lambda: kill(lab["te1"], SERVER))
    assert "ended with status 137" in told.failed
    assert {host.name: pids(host, RAYLET) for host in lab.hosts} == raylets
    assert len(served.workers()) == 2, "the old server's workers ended with it"


def test_ten_seconds_without_a_host_are_sat_out_and_nothing_is_started_again(served: Served) -> None:
    host, before, mark = served.other_host(), served.processes(), served.events()[-1][0]
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(served.answer(timeout=120)))
    host.cut()
    try:
        asking.start()
        host.run("sleep", "10")
    finally:
        host.restore()
    asking.join(130)
    assert len(answers) == 1, "the prompt that was on its way is answered"
    assert served.answer()
    assert served.is_well()
    assert served.processes() == before
    ours = served.now()["subjects"].values()
    assert [event for event in served.events(mark) if event[1] in ours] == []


def test_a_host_that_stays_away_is_named_and_all_comes_back_with_it(served: Served, alone: int) -> None:
    """Away until Ray and Quarterdeck both have given it up. ``alone`` starts meanwhile: it has to be waited anyway."""
    host = served.other_host()

    def cut_until_noticed() -> None:
        host.cut()
        gone = time.monotonic()
        try:
            until(lambda: served.now()["states"][1] == "failed", 240, "the deployment is failed", SELDOM)
            until(lambda: f"{host.name}: Ray lost it" in served.now()["ray"], 60, "the cluster has lost it", SELDOM)
            until(lambda: served.deck.state(host.name) == "unreachable", 60, "Quarterdeck has lost it", SELDOM)
            until(lambda: time.monotonic() - gone > AWAY, AWAY + 1, "it stayed away as long as it was to", SELDOM)
        finally:
            host.restore()

    told = served.after(cut_until_noticed)
    assert host.name in told.failed


def test_prompts_are_answered_while_the_control_plane_is_gone_and_it_finds_all_as_it_was(
    served: Served, deck: LabDeck, lab: Lab
) -> None:
    """All its processes are killed, its Valkey too; a gateway in a process of its own goes on."""
    before, now = served.processes(), served.now()
    with gateway_alone(deck) as (address, pid):
        until(lambda: served.answer(address), 60, "the gateway answers")
        deck.crash(but=[pid])
        try:
            gone = time.monotonic()
            while time.monotonic() - gone < AWAY:  # longer than any lease
                served.answer(address)
        finally:
            deck.start()
        deck.wait_for_address()
        served.answer(address)
    until(served.is_well, 60, "it is known to be well")
    assert served.answer()
    assert served.processes() == before
    assert (served.now()["server"], served.now()["restarts"]) == (now["server"], now["restarts"])
    assert_log_is_whole(deck, lab, now["server"])


@contextmanager
def gateway_alone(deck: LabDeck) -> Iterator[tuple[str, int]]:
    """``manage.py gateway`` beside the rest; its address and process id."""
    port = free_port()
    line = [sys.executable, "manage.py", "gateway", "--port", str(port)]
    process = subprocess.Popen(line, cwd=ROOT, env=deck.environment, stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port), 60, "the gateway listens")
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait(10)


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def assert_log_is_whole(deck: LabDeck, lab: Lab, job: str) -> None:
    """What Quarterdeck has of a running server's log is what the node has, from its first byte on."""
    path = f"/root/.quarterdeck/jobs/{job}/log"
    written = len(lab["te1"].read(path))
    until(lambda: deck.do(_LIVE, job=job)[0] >= written, 30, "what was written meanwhile is there")
    size, digest = deck.do(_LIVE, job=job)
    assert hashlib.sha256(lab["te1"].read(path)[:size]).hexdigest() == digest


def test_processes_of_one_host_serve_without_ray_and_a_stop_leaves_nothing_of_them(
    alone: int, deck: LabDeck, lab: Lab
) -> None:
    """vLLM's own executor ("mp")."""
    until(lambda: deck.run(alone)["state"] in ("done", "failed"), 480, "the start of it is over", SELDOM)
    assert deck.run(alone)["state"] == "done", deck.run(alone)
    host = lab["te5"]
    assert "'distributed_executor_backend': 'mp'" in deck.do(_ALONES_LOG)
    assert pids(host, RAYLET) == []
    assert Served(lab, deck, "alone", str(deck.do(_KEY))).answer()
    stopped = deck.finished(int(deck.do(_STOP_ALONE)), 120)
    assert stopped["state"] == "done", stopped
    proof = next(step["reason"] for step in stopped["steps"] if step["kind"] == "stop-server")
    assert re.fullmatch(r"no process is left; free again: \d\.\d GiB on te5", proof)
    assert host.run("sh", "-c", "grep -lzs '^QD_JOB=' /proc/[0-9]*/environ || true") == ""
