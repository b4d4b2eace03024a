"""One deployment in a lab as tests see it: how it is, what it answers, where its processes are, what befell it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

from tests.lab import Lab
from tests.lab.deck import LabDeck
from tests.lab.host import Host, until

WORKER, SERVER, RAYLET, GCS = "^[r]ay::RayWorker", "[v]llm serve", "[r]aylet/raylet", "[g]cs/gcs_server"
#: Everything of Ray and vLLM that goes on where nothing is started again.
LASTING = (WORKER, SERVER, "^[V]LLM::EngineCore", RAYLET, GCS)
#: Seconds; most of a minute on two cores where nothing else runs.
RECOVERY = 480#: Seconds between two looks: a look costs processor time that an engine could start with.
SELDOM = 0.5

_NOW = """
from deployments.models import Replica
from nodes.models import Run
one = Replica.objects.select_related("deployment__cluster", "node").get(deployment__name=name)
runs = Run.objects.filter(about__in=[one.deployment.subject, one.deployment.cluster.subject])
answer = {
    "states": [one.state, one.deployment.state, one.deployment.cluster.state],
    "restarts": one.restarts, "server": str(one.server_id), "node": one.node.name, "port": one.port,
    "url": f"http://{one.node.address}:{one.port}", "api_key": one.deployment.api_key.reveal(),
    "hosts": [place["host"] for place in one.placement], "measured": one.measured,
    "ray": one.deployment.cluster.reason,
    "busy": runs.exclude(state__in=["done", "failed"]).exists(),
    "starts": runs.filter(story="rollout").count(),
    "subjects": {"replica": one.subject, "deployment": one.deployment.subject,
                 "cluster": one.deployment.cluster.subject}}
"""
_EVENTS = """
from controlplane.lifecycle import Event
found = Event.objects.filter(pk__gt=after).order_by("pk")
answer = [[event.pk, event.subject, event.new, event.reason] for event in found]
"""
# As if all had been well for long: no delay has grown, and no server was started within the last minute.
_LONG_WELL = """
from datetime import timedelta
from django.utils import timezone
from deployments.models import Deployment, Replica
from nodes.models import Cluster
long_ago = timezone.now() - timedelta(hours=1)
Replica.objects.update(state_since=long_ago)
Deployment.objects.update(restarted_at=None)
Cluster.objects.update(state_since=long_ago)
"""


class Story(NamedTuple):
    """Why the deployment had failed, and what was said of its cluster's Ray meanwhile."""

    failed: str
    ray: str


@dataclass
class Served:
    """The deployment ``name``, asked through the gateway with ``key``."""

    lab: Lab
    deck: LabDeck
    name: str
    key: str

    def now(self) -> dict[str, Any]:
        return dict(self.deck.do(_NOW, name=self.name))

    def is_well(self) -> bool:
        """Whether server, deployment and cluster are ready and nobody is doing anything to them."""
        now = self.now()
        return now["states"] == ["ready"] * 3 and not now["busy"]

    def events(self, after: int = 0) -> list[list[Any]]:
        """Number, subject, new state and reason of every change of a state since."""
        return list(self.deck.do(_EVENTS, after=after))

    def answer(self, gateway: str = "", timeout: float = 60) -> str:
        """What it says to a prompt; AssertionError where it does not."""
        said = httpx.post(
            f"{gateway or self.deck.wait_for_address()}/v1/chat/completions", timeout=timeout,
            headers={"Authorization": f"Bearer {self.key}"},
            json={"model": self.name, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]})
        assert said.status_code == 200, said.text
        return str(said.json()["choices"][0]["message"]["content"])

    def processes(self) -> dict[str, dict[str, list[str]]]:
        """Process ids of all that lasts, by host and pattern."""
        return {host.name: {pattern: pids(host, pattern) for pattern in LASTING} for host in self.lab.hosts}

    def workers(self) -> list[str]:
        """The hosts that hold a part of the model."""
        return [host.name for host in self.lab.hosts if pids(host, WORKER)]

    def other_host(self) -> Host:
        """One with a part of the model, and not the head of the cluster."""
        return self.lab[next(name for name in self.workers() if name != self.now()["node"])]

    def after(self, fault: Callable[[], object]) -> Story:
        """Do it, and wait until one server was started again and all is well; returns what was told meanwhile."""
        self.deck.do(_LONG_WELL)
        before, mark, ray = self.now(), self.events()[-1][0], set()

        def is_back() -> bool:
            now = self.now()
            ray.add(now["ray"])
            return now["restarts"] > before["restarts"] and now["states"] == ["ready"] * 3 and not now["busy"]

        fault()
        until(is_back, RECOVERY, f"it came back; {ray}", SELDOM)
        assert self.now()["restarts"] == before["restarts"] + 1, self.events(mark)
        assert self.answer()
        deployment = before["subjects"]["deployment"]
        failed = [reason for _number, about, new, reason in self.events(mark) if (about, new) == (deployment, "failed")]
        return Story("\n".join(failed), "\n".join(ray))


def pids(host: Host, pattern: str) -> list[str]:
    return host.run("sh", "-c", 'pgrep -f "$1" || true', "sh", pattern).split()


def kill(host: Host, pattern: str) -> None:
    """kill -9; AssertionError where there is nothing to kill."""
    found = pids(host, pattern)
    assert found, f"{pattern} on {host.name}"
    host.run("kill", "-9", *found)
