"""The REST API of nodes and runs. As the pages, it calls the stories and never a host."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from ninja import Field, Path, Query, Router, Schema
from ninja.responses import Status

from controlplane.api import FAILURES, Line, Listed, Name, Number, Text, Window, checked, listed, needs
from controlplane.roles import ADMIN, OPERATOR
from nodes import logs, preparation, registration, removal, runs
from nodes.models import Job, Node, Run, Step
from nodes.web.forms import NodeForm

router = Router()


class Gpu(Schema):
    index: int
    name: str
    memory_total: int = Field(description="bytes")


class NodeOut(Schema):
    """One server."""

    name: str
    state: str
    state_since: datetime
    reason: str = Field(description="why it is in this state; empty when there is nothing to say")
    kind: str
    address: str
    port: int
    user: str
    labels: list[str]
    cluster: str | None
    cpus: int
    memory_total: int = Field(description="bytes")
    gpus: list[Gpu]


class NodeDetail(NodeOut):
    """One server, with all that was observed on it."""

    created_at: datetime
    facts_at: datetime | None
    facts: dict[str, Any]


class HostKeyOut(Schema):
    """What a server shows of itself, for a person to compare; `line` is what registers it."""

    type: str
    fingerprint: str
    line: str


class SignInWith(Schema):
    """How to sign in this once; what is given is forgotten afterwards."""

    password: Text = ""
    private_key: Text = ""
    passphrase: Text = ""

    def method(self) -> str:
        """As the page's form has it."""
        return "key" if self.private_key else "password"


class Login(SignInWith):
    """Where a server is, and how to sign in to it this once."""

    name: Line
    address: Line
    port: int = Field(22, ge=1, le=65535)
    user: Line


class NodeNew(Login):
    host_key: Line = Field(description="the approved line of POST /nodes/host-key")


class RunOut(Schema):
    """One operation with a story."""

    id: int
    story: str
    about: str = Field(description="the row it is about, for example node:3")
    state: str
    reason: str
    created_by: str | None
    created_at: datetime
    finished_at: datetime | None


class StepOut(Schema):
    """One thing a run does on one node; `job` has its log."""

    stage: int
    kind: str
    title: str
    node: str
    state: str
    reason: str
    job: uuid.UUID | None
    started_at: datetime | None
    finished_at: datetime | None


class RunDetail(RunOut):
    steps: list[StepOut]


def summary(node: Node) -> dict[str, Any]:
    """A node as the API has it, in short."""
    facts = node.facts
    gpus = [Gpu(index=gpu.index, name=gpu.name, memory_total=gpu.memory_total_mib << 20) for gpu in facts.gpus]
    return {
        **{name: getattr(node, name) for name in ("name", "state", "state_since", "reason", "kind", "address", "port")},
        "user": node.user,
        "labels": [str(label) for label in node.labels],
        "cluster": node.cluster.name if node.cluster else None,
        "cpus": facts.cpus,
        "memory_total": facts.memory_total,
        "gpus": gpus,
    }


def tell_run(run: Run) -> RunOut:
    """A run as the API has it."""
    return RunOut(**_run(run))


def _run(run: Run) -> dict[str, Any]:
    names = ("id", "story", "about", "state", "reason", "created_at", "finished_at")
    told = {name: getattr(run, name) for name in names}
    return told | {"created_by": run.created_by.get_username() if run.created_by else None}


def _step(step: Step) -> StepOut:
    names = ("stage", "kind", "state", "reason", "started_at", "finished_at")
    told = {name: getattr(step, name) for name in names}
    return StepOut(title=str(runs.step_title(step.kind)), node=step.node.name, job=step.job_id, **told)


def _named(name: str) -> Node:
    return get_object_or_404(Node.objects.select_related("cluster"), name=name)


@router.get("/nodes", response={200: Listed[NodeOut], **FAILURES}, tags=["nodes"])
def nodes(request: HttpRequest, window: Query[Window]) -> dict[str, Any]:
    found = Node.objects.select_related("cluster")
    return listed(found, window, lambda node: NodeOut(**summary(node)))


@router.post("/nodes/host-key", response={200: HostKeyOut, **FAILURES}, tags=["nodes"])
def host_key(request: HttpRequest, login: Login) -> HostKeyOut:
    """The host key a server shows now. Nothing is sent to it."""
    needs(request, OPERATOR)
    key = registration.offered_key(_login(login))
    return HostKeyOut(type=key.type, fingerprint=key.fingerprint, line=key.line)


@router.post("/nodes", response={201: NodeOut, **FAILURES}, tags=["nodes"])
def register(request: HttpRequest, login: NodeNew) -> Status[NodeOut]:
    """Sign in to the server that holds the approved host key, and make it a node. What was typed is forgotten."""
    user = needs(request, OPERATOR).user
    return Status(201, NodeOut(**summary(registration.register(_login(login), login.host_key, user))))


def _login(login: Login) -> registration.Login:
    """Looked at as the page's form looks at it."""
    form = NodeForm(login.dict(exclude={"host_key"}) | {"method": login.method()})
    checked(form)
    return form.login()


@router.get("/nodes/{name}", response={200: NodeDetail, **FAILURES}, tags=["nodes"])
def node(request: HttpRequest, name: Path[Name]) -> NodeDetail:
    found = _named(name)
    more = {"created_at": found.created_at, "facts_at": found.facts_at, "facts": found.facts_json}
    return NodeDetail(**summary(found), **more)


class Leaving(Schema):
    what: Literal["leave", "ours", "all"] = Field(
        "leave", description="leave everything there; or take away what is ours, or the models too, as a run"
    )


@router.delete("/nodes/{name}", response={202: RunOut, 204: None, **FAILURES}, tags=["nodes"])
def remove(request: HttpRequest, name: Path[Name], leaving: Query[Leaving]) -> Status[RunOut] | Status[None]:
    """Take the node out of Quarterdeck: at once, leaving the server as it is but for our key, or as a run."""
    user = needs(request, ADMIN).user
    if leaving.what == "leave":
        removal.forget(_named(name), user)
        return Status(204, None)
    return Status(202, tell_run(removal.remove(_named(name), user, models=leaving.what == "all")))


@router.post("/nodes/{name}/check", response={202: RunOut, **FAILURES}, tags=["nodes"])
def check(request: HttpRequest, name: Path[Name]) -> Status[RunOut]:
    """Look at the server again."""
    user = needs(request, OPERATOR).user
    return Status(202, tell_run(preparation.check(_named(name), user)))


@router.post("/nodes/{name}/prepare", response={202: RunOut, **FAILURES}, tags=["nodes"])
def prepare(request: HttpRequest, name: Path[Name]) -> Status[RunOut]:
    """Bring the server to where it can serve; what is there already is skipped."""
    user = needs(request, OPERATOR).user
    return Status(202, tell_run(preparation.prepare(_named(name), user)))


class Which(Window):
    about: Line = Field("", description="only runs about this row, for example node:3")


@router.get("/runs", response={200: Listed[RunOut], **FAILURES}, tags=["runs"])
def all_runs(request: HttpRequest, which: Query[Which]) -> dict[str, Any]:
    """Newest first."""
    found = Run.objects.select_related("created_by")
    return listed(found.filter(about=which.about) if which.about else found, which, tell_run)


@router.get("/runs/{id}", response={200: RunDetail, **FAILURES}, tags=["runs"])
def run(request: HttpRequest, id: Path[Number]) -> RunDetail:
    found = get_object_or_404(Run.objects.select_related("created_by"), pk=id)
    return RunDetail(**_run(found), steps=[_step(step) for step in found.steps.select_related("node")])


class Part(Schema):
    """Bytes of a log."""

    start: int = Field(0, ge=0, le=2**53)
    size: int = Field(1 << 16, ge=1, le=logs.PIECE)


_AS_IT_IS = {"description": "the bytes", "content": {"text/plain": {"schema": {"type": "string"}}}}


@router.get(
    "/jobs/{id}/log", response={200: str, **FAILURES}, tags=["runs"], openapi_extra={"responses": {200: _AS_IT_IS}}
)
def log(request: HttpRequest, id: Path[uuid.UUID], part: Query[Part]) -> HttpResponse:
    """Bytes of a job's log as they are, at most `size` from `start` on; none at its end so far.

    `X-Log-Start` names the first of them: a later one than asked for where neither node nor archive has it any more.
    """
    job = get_object_or_404(Job.objects.select_related("node"), pk=id)
    chunk = logs.read(job, part.start, part.size)
    response = HttpResponse(chunk.data, content_type="text/plain; charset=utf-8")
    response.headers["X-Log-Start"] = str(chunk.start)
    return response
