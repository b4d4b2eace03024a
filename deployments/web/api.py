"""The REST API of deployments: the stories of their pages, for programs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from django.contrib.auth.models import User
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from django.utils.translation import gettext as _
from ninja import Field, Path, Query, Router, Schema
from ninja.responses import Status
from pydantic import StringConstraints

from controlplane.api import FAILURES, Invalid, Line, Listed, Name, Small, Window, Word, listed, needs
from controlplane.problems import Problem
from controlplane.roles import ADMIN, OPERATOR
from deployments import aliases, revisions
from deployments.kept import Revision
from deployments.models import Deployment, Replica
from deployments.rollout import effects, exchange
from deployments.rollout import stories as rollout
from deployments.spec import Spec, from_yaml
from nodes.web.api import RunOut, tell_run

router = Router()

NewName = Annotated[str, StringConstraints(max_length=63, pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$")]


class ReplicaOut(Schema):
    """One server of a deployment."""

    number: int
    revision: int
    state: str
    reason: str
    node: str
    port: int
    restarts: int


class DeploymentOut(Schema):
    """One model served by vLLM."""

    name: str
    aliases: list[str]
    state: str
    state_since: datetime
    reason: str = Field(description="why it is in this state; empty when there is nothing to say")
    model: str
    cluster: str
    executor: str
    copies: int
    options: dict[str, Any] = Field(description="vLLM's own flag names and values")
    replicas: list[ReplicaOut]
    created_at: datetime


class DeploymentNew(Schema):
    """What a deployment is to be; what is left out is left to the plan. It runs on a `cluster` or on one `node`."""

    name: NewName
    model: Line = Field(description="demo, an absolute path on the nodes, or one of a hub such as hf:Qwen/Qwen2.5-0.5B")
    cluster: Word = ""
    node: Word = ""
    copies: int | None = Field(None, ge=1, le=64)
    executor: Literal["", "ray", "mp"] = ""
    port: int | None = Field(None, ge=1024, le=65535)
    options: dict[Line, Any] = Field(default_factory=dict, max_length=200, description="vLLM's own flag names")


class RevisionOut(Schema):
    """A specification that a deployment has or had."""

    number: int
    spec: dict[str, Any]
    note: str
    created_by: str | None
    created_at: datetime


class Difference(Schema):
    """What of a deployment changed; null: it is not set."""

    name: str
    old: Any
    new: Any


class AppliedOut(Schema):
    name: str
    what: Literal["created", "changed", "unchanged"]
    revision: int
    lines: list[Difference]
    run: RunOut | None = Field(description="what makes it run as the file says; null: nothing has to, or cannot now")
    problem: str = Field("", description="why it cannot run as the file says now; it is saved")


class Effect(Schema):
    """What becomes of the servers."""

    restart: bool = Field(True, description="replace servers that run another specification; false: only save")


class ApplyEffect(Effect):
    start: bool = Field(False, description="roll out what does not run, too")


class AliasNew(Schema):
    name: Annotated[str, StringConstraints(max_length=120, pattern=f"^{aliases.NAME}$")]


def _deployment(one: Deployment) -> DeploymentOut:
    names = ("name", "state", "state_since", "reason", "model", "executor", "copies", "options", "created_at")
    told = {name: getattr(one, name) for name in names}
    names_too = [alias.name for alias in one.aliases.all()]
    servers = [_replica(server) for server in one.replicas.all()]
    return DeploymentOut(cluster=one.cluster.name, aliases=names_too, replicas=servers, **told)


def _replica(server: Replica) -> ReplicaOut:
    names = ("number", "revision", "state", "reason", "port", "restarts")
    return ReplicaOut(node=server.node.name, **{name: getattr(server, name) for name in names})


def _revision(one: Revision) -> RevisionOut:
    by = one.created_by.get_username() if one.created_by else None
    return RevisionOut(number=one.number, spec=one.spec, note=one.note, created_by=by, created_at=one.created_at)


def _named(name: str) -> Deployment:
    return get_object_or_404(Deployment.objects.select_related("cluster__head"), name=name)


@router.get("/deployments", response={200: Listed[DeploymentOut], **FAILURES}, tags=["deployments"])
def deployments(request: HttpRequest, window: Query[Window]) -> dict[str, Any]:
    found = Deployment.objects.select_related("cluster").prefetch_related("aliases", "replicas__node")
    return listed(found, window, _deployment)


@router.post("/deployments", response={201: DeploymentOut, **FAILURES}, tags=["deployments"])
def create(request: HttpRequest, new: DeploymentNew) -> Status[DeploymentOut]:
    """A new deployment with its plan, which is not started yet."""
    user = needs(request, OPERATOR).user
    return Status(201, _deployment(revisions.create(Spec.from_dict(new.dict()), user)))


@router.get("/deployments/{name}", response={200: DeploymentOut, **FAILURES}, tags=["deployments"])
def deployment(request: HttpRequest, name: Path[Name]) -> DeploymentOut:
    return _deployment(_named(name))


_YAML = {"required": True, "content": {"application/yaml": {"schema": {"type": "string"}}}}


@router.post(
    "/apply", response={200: list[AppliedOut], **FAILURES}, tags=["deployments"], openapi_extra={"requestBody": _YAML}
)
def apply(request: HttpRequest, effect: Query[ApplyEffect]) -> list[AppliedOut]:
    """Make deployments what a YAML file says, as `manage.py apply` does: nothing, where any of it cannot be."""
    user = needs(request, OPERATOR).user
    try:
        specs = from_yaml(request.body.decode())
    except UnicodeDecodeError as error:
        raise Invalid(_("This is not text in UTF-8.")) from error
    for spec in specs:  # all of them before the first is touched; nodes may be asked, so in no transaction
        revisions.check(spec)
    saved = [revisions.apply(spec, user, "/api/apply") for spec in specs]
    return [_applied(one, user, effect) for one in saved]


def _applied(applied: revisions.Applied, user: User, effect: ApplyEffect) -> AppliedOut:
    """Have it run as it is saved; one that cannot does not keep the others from it."""
    run, problem = None, ""
    try:
        run = effects.take(applied.deployment, user, start=effect.start) if effect.restart else None
    except Problem as found:
        problem = str(found)
    lines = [Difference(**line._asdict()) for line in applied.lines]
    return AppliedOut(
        name=applied.deployment.name, what=applied.what, revision=applied.deployment.revision, lines=lines,  # type: ignore[arg-type]
        run=tell_run(run) if run else None, problem=problem,
    )


@router.put("/deployments/{name}", response={200: DeploymentOut, **FAILURES}, tags=["deployments"])
def change(request: HttpRequest, name: Path[Name], new: DeploymentNew, effect: Query[Effect]) -> DeploymentOut:
    """Give it another specification, and have servers that run replaced by such: without a gap where GPUs allow it."""
    user = needs(request, OPERATOR).user
    found = _named(name)
    revisions.change(found, Spec.from_dict(new.dict()), user)
    return _running_as_saved(found, user, effect)


def _running_as_saved(found: Deployment, user: User, effect: Effect) -> DeploymentOut:
    """Raises the `Problem` that keeps its servers from being replaced, which says that it is saved."""
    try:
        if effect.restart:
            effects.take(found, user)
    except Problem as problem:
        said = _("Revision %(number)d is saved, and does not run yet: %(why)s")
        raise Problem(said % {"number": found.revision, "why": problem.what}, problem.next_step) from problem
    return _deployment(_named(found.name))


@router.get("/deployments/{name}/revisions", response={200: Listed[RevisionOut], **FAILURES}, tags=["deployments"])
def all_revisions(request: HttpRequest, name: Path[Name], window: Query[Window]) -> dict[str, Any]:
    """What it is and was, newest first."""
    return listed(_named(name).revisions.select_related("created_by"), window, _revision)


@router.post(
    "/deployments/{name}/revisions/{number}/restore",
    response={200: DeploymentOut, **FAILURES},
    tags=["deployments"],
)
def restore(
    request: HttpRequest, name: Path[Name], number: Path[Small], effect: Query[Effect]
) -> DeploymentOut:
    """Make an earlier specification the newest, and have servers that run replaced by such."""
    user = needs(request, OPERATOR).user
    found = _named(name)
    revisions.roll_back(found, number, user)
    return _running_as_saved(found, user, effect)


@router.post("/deployments/{name}/start", response={202: RunOut, **FAILURES}, tags=["deployments"])
def start(request: HttpRequest, name: Path[Name]) -> Status[RunOut]:
    """Roll it out. The run tells how far it is."""
    user = needs(request, OPERATOR).user
    return Status(202, tell_run(rollout.start(_named(name), user)))


@router.post("/deployments/{name}/restart", response={202: RunOut, **FAILURES}, tags=["deployments"])
def restart(request: HttpRequest, name: Path[Name]) -> Status[RunOut]:
    """Replace the servers by fresh ones of the newest revision: without a gap where the free GPUs allow it."""
    user = needs(request, OPERATOR).user
    return Status(202, tell_run(exchange.replace(_named(name), user)))


@router.post("/deployments/{name}/stop", response={202: RunOut, **FAILURES}, tags=["deployments"])
def stop(request: HttpRequest, name: Path[Name]) -> Status[RunOut]:
    """Stop its servers; a rollout under way is given up."""
    user = needs(request, OPERATOR).user
    return Status(202, tell_run(rollout.stop(_named(name), user)))


@router.delete("/deployments/{name}", response={204: None, **FAILURES}, tags=["deployments"])
def delete(request: HttpRequest, name: Path[Name]) -> Status[None]:
    """Forget a deployment that is not running."""
    rollout.delete(_named(name), needs(request, ADMIN).user)
    return Status(204, None)


@router.post("/deployments/{name}/aliases", response={201: DeploymentOut, **FAILURES}, tags=["deployments"])
def add_alias(request: HttpRequest, name: Path[Name], alias: AliasNew) -> Status[DeploymentOut]:
    """Let requests use another name for it too."""
    user = needs(request, OPERATOR).user
    aliases.add(_named(name), alias.name, user)
    return Status(201, _deployment(_named(name)))


@router.delete("/deployments/{name}/aliases", response={204: None, **FAILURES}, tags=["deployments"])
def remove_alias(request: HttpRequest, name: Path[Name], alias: Query[AliasNew]) -> Status[None]:
    needs(request, OPERATOR)
    aliases.remove(_named(name), alias.name)
    return Status(204, None)
