"""A server is replaced while its answers go on, with real processes: servers, watch, and a gateway."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from pytest_django import Settings

from deployments.gateway import draining, keys
from deployments.models import Deployment
from deployments.rollout import exchange
from deployments.rollout.replacing import Way
from deployments.states import DeploymentState
from nodes.models import Run, Step
from nodes.states import JOB_ACTIVE, RunState
from nodes.watch import Watch
from tests.support.deck import ROOT
from tests.support.rolling import only, rolled_out, until
from tests.support.sshd import free_port
from tests.support.stand_in_engine import StandInEngine
from tests.test_gateway import CHAT
from tests.test_gateway_alone import surroundings

pytestmark = [
    pytest.mark.valkey, pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_ports", "few_pythons")
]
PROMPT = {"model": "small", "messages": [{"role": "user", "content": "Who?"}]}


@pytest.fixture
def gateway(quarterdeck: Watch, settings: Settings, tmp_path: Path) -> Iterator[httpx.Client]:
    """The gateway in a process of its own, and a client with a key."""
    port, environment = free_port(), surroundings() | {"REDIS_URL": settings.REDIS_URL}
    _key, plain = keys.create(User.objects.create_user("ada"), "laptop")
    with (tmp_path / "gateway.log").open("wb") as log:
        command = [sys.executable, "manage.py", "gateway", "--port", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    headers = {"Authorization": f"Bearer {plain}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30, trust_env=False) as http:
        try:
            yield http
        finally:
            process.kill()
            process.wait()


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/v1/models").status_code == 200
    except httpx.TransportError:
        return False


def asked(http: httpx.Client) -> int:
    """The port of the server that answers a prompt now."""
    return int(http.post(CHAT, json=PROMPT).raise_for_status().json()["port"])


def replaced(deployment: Deployment) -> Run:
    return exchange.replace(deployment.fresh(), None)


def step(run: Run, kind: str) -> Step:
    return run.steps.get(kind=kind)


def test_an_answer_under_way_ends_where_it_began_and_only_then_its_server_does(
    gateway: httpx.Client, deployment: Deployment, engine: StandInEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "forecast", lambda _: Way.BESIDE)
    Deployment.objects.update(executor="mp")
    rolled_out(deployment.fresh())
    until(lambda: answers(gateway))
    old = only(deployment)
    assert asked(gateway) == old.port

    with gateway.stream("POST", CHAT, json={**PROMPT, "stream": True}) as answer:
        lines = answer.iter_lines()
        assert str(old.port) in next(lines)
        run = replaced(deployment)
        until(lambda: step(run, "drain").state == RunState.RUNNING)
        until(lambda: asked(gateway) != old.port)
        assert old.port not in {asked(gateway) for _ in range(5)}
        until(lambda: draining.in_flight(old.server_id) == 1)  # a report may be from before the prompt
        looked = time.monotonic() + 2 * draining.EVERY
        until(lambda: time.monotonic() > looked)  # the run is advanced all the while
        assert step(run, "stop-server").state == RunState.WAITING
        let_go = timezone.now()
        (engine.root / "go-on").touch()
        rest = [line for line in lines if line]
    assert str(old.port) in rest[0]
    assert rest[-1] == "data: [DONE]"
    until(lambda: run.fresh().state == RunState.DONE)
    assert step(run, "drain").reason == "all its answers ended"
    stopped = step(run, "stop-server").started_at
    assert stopped is not None
    assert stopped > let_go
    assert old.server is not None
    assert old.server.fresh().state not in JOB_ACTIVE
    cut_off_after_the_limit(gateway, deployment, engine, monkeypatch)


def cut_off_after_the_limit(
    gateway: httpx.Client, deployment: Deployment, engine: StandInEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that never ends does not keep its server for ever."""
    monkeypatch.setattr(exchange, "DRAIN_TIME", timedelta(seconds=1))
    (engine.root / "go-on").unlink()
    with gateway.stream("POST", CHAT, json={**PROMPT, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        run = replaced(deployment)
        until(lambda: run.fresh().state == RunState.DONE)
        assert step(run, "drain").reason.startswith("answers that still go on are cut off after")
        assert deployment.fresh().state == DeploymentState.READY
        assert "data: [DONE]" not in list(lines)
