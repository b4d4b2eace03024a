"""A whole Quarterdeck that a test can also ask from inside: lines of Python, run with its settings and database."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tests.lab.host import Host, until
from tests.support.deck import ROOT, Deck

_CONSOLE = """
import json, sys, django
django.setup()
for line in sys.stdin:
    asked = json.loads(line)
    known = dict(asked["known"])
    try:
        exec(asked["source"], known)
        said = {"answer": known.get("answer")}
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(said, default=str), flush=True)
"""
_REGISTER = """
from controlplane.secrets import Secret
from nodes import registration
login = registration.Login(name, address, port, user, private_key=Secret(key))
answer = registration.register(login, host_key, None).pk
"""
_BEGIN = """
from nodes import preparation
from nodes.models import Node
answer = getattr(preparation, story)(Node.objects.get(name=name), None).pk
"""
_STATE = "from nodes.models import Node; node = Node.objects.get(name=name); answer = [node.state, node.reason]"
_FACTS = "from nodes.models import Node; answer = Node.objects.get(name=name).facts_json"
_RUN = """
from nodes.models import Run
run = Run.objects.get(pk=pk)
answer = {"state": run.state, "reason": run.reason, "steps": [
    {"kind": step.kind, "node": step.node.name, "state": step.state, "reason": step.reason,
     "job": step.job and str(step.job.pk)} for step in run.steps.select_related("node", "job")]}
"""
_LOGS = """
import hashlib
from controlplane import streams
from nodes import logs
from nodes.models import Job
answer = {}
for job in Job.objects.filter(node__name__in=names).select_related("node"):
    live = b"".join(chunk.data for chunk in streams.read(streams.log_key(job.pk), 0))
    answer[str(job.pk)] = {
        "node": job.node.name, "name": job.name, "state": job.state, "place": logs.place(job),
        "live": hashlib.sha256(live).hexdigest(),
        "kept": hashlib.sha256(b"".join(logs.read_all(job))).hexdigest()}
"""


class LabDeck(Deck):
    """A `Deck` with a console into it. Nodes are named as the hosts are."""

    def __init__(self, var: Path, *arguments: str, **environment: str) -> None:
        super().__init__(var, *arguments, **environment)
        self._console: subprocess.Popen[str] | None = None

    def do(self, source: str, **known: object) -> Any:
        """Run Python inside this installation; returns what it left in ``answer``. AssertionError for its exception."""
        if self._console is None:
            self._console = subprocess.Popen(
                [sys.executable, "-c", _CONSOLE], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env={**self.environment, "DJANGO_SETTINGS_MODULE": "controlplane.settings"})
        assert self._console.stdin is not None
        assert self._console.stdout is not None
        self._console.stdin.write(json.dumps({"source": source, "known": known}) + "\n")
        self._console.stdin.flush()
        said = json.loads(self._console.stdout.readline())
        assert "error" not in said, said["error"]
        return said["answer"]

    def register(self, *hosts: Host) -> None:
        """Make nodes of the hosts, and wait until it is known what they are."""
        for host in hosts:
            self.do(_REGISTER, name=host.name, address=host.address, port=host.port, user=host.user, key=host.key,
                    host_key=host.host_key.line)
        for host in hosts:
            until(lambda host=host: self.do(_FACTS, name=host.name), 30, f"the facts of {host.name}")  # type: ignore[misc]

    def state(self, name: str) -> str:
        """A node's state."""
        return str(self.do(_STATE, name=name)[0])

    def reason(self, name: str) -> str:
        """Why a node is in its state."""
        return str(self.do(_STATE, name=name)[1])

    def facts(self, name: str) -> dict[str, Any]:
        return dict(self.do(_FACTS, name=name))

    def prepare(self, name: str) -> int:
        """Begin to prepare a node; returns the run."""
        return int(self.do(_BEGIN, story="prepare", name=name))

    def check(self, name: str) -> int:
        """Begin to look at a node; returns the run."""
        return int(self.do(_BEGIN, story="check", name=name))

    def run(self, pk: int) -> dict[str, Any]:
        """A run's state, reason and steps (kind, node, state, reason, job)."""
        return dict(self.do(_RUN, pk=pk))

    def jobs(self, *hosts: Host) -> dict[str, Any]:
        """The jobs of these hosts' nodes: id → node, name, state, place. Asserts that their logs are whole.

        As it came live, and as it is kept: each is byte by byte the file on the node.
        """
        found = dict(self.do(_LOGS, names=[host.name for host in hosts]))
        files = {host.name: host for host in hosts}
        for job in found.values():
            on_node = hashlib.sha256(files[job["node"]].read(f"{job['place']}/log")).hexdigest()
            assert (job["live"], job["kept"]) == (on_node, on_node), job
        return found

    def finished(self, pk: int, seconds: float) -> dict[str, Any]:
        """The run once it is over."""
        until(lambda: self.run(pk)["state"] in ("done", "failed"), seconds, f"run {pk} is over: {self.run(pk)}")
        return self.run(pk)

    def crash(self, but: Collection[int] = ()) -> None:
        self._close_console()
        super().crash(but)

    def stop(self) -> int:
        self._close_console()
        return super().stop()

    def _close_console(self) -> None:
        if self._console is not None:
            assert self._console.stdin is not None
            assert self._console.stdout is not None
            self._console.stdin.close()
            self._console.wait(10)
            self._console.stdout.close()
            self._console = None
