"""The REST API of registering many servers at once, and of host keys that changed and are approved."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from django.http import Http404, HttpRequest
from django.shortcuts import get_object_or_404
from django.utils.translation import gettext as _
from ninja import Field, Path, Router, Schema
from ninja.responses import Status
from pydantic import StringConstraints

from controlplane.api import FAILURES, Invalid, Line, Name, Number, Text, Word, checked, needs
from controlplane.roles import ADMIN, OPERATOR, SignedIn
from nodes import batches, registration
from nodes.candidates import Batch, Candidate
from nodes.models import Node
from nodes.web.api import NodeOut, SignInWith, summary
from nodes.web.forms import LONGEST_LIST, OTHER, NodeForm
from nodes.web.pages import changed_key, fingerprint, shown_with

router = Router()


# --- a changed host key -----------------------------------------------------------------------------------------


class ChangedKeyOut(Schema):
    """A host key that is not the pinned one. It stops all work on the node until an admin approves it."""

    host: str = Field(description="the node itself, or the jump host on the way to it")
    pinned: str
    offered: str


class Approval(Schema):
    fingerprint: Line = Field(description="as it was shown: SHA256:…")


@router.get("/nodes/{name}/host-key", response={200: ChangedKeyOut, **FAILURES}, tags=["nodes"])
def changed(request: HttpRequest, name: Path[Name]) -> ChangedKeyOut:
    """The changed host key that stops the work on a node; 404 where it shows the one that is pinned."""
    found = changed_key(get_object_or_404(Node, name=name))
    if found is None:
        raise Http404
    return ChangedKeyOut(host=str(found.host), pinned=found.pinned, offered=found.offered)


@router.put("/nodes/{name}/host-key", response={200: NodeOut, **FAILURES}, tags=["nodes"])
def approve_changed(request: HttpRequest, name: Path[Name], approval: Approval) -> NodeOut:
    """Pin the key that the host shows now, if it is still the one with this fingerprint. The node is looked at."""
    user = needs(request, ADMIN).user
    found = get_object_or_404(Node.objects.select_related("cluster"), name=name)
    registration.approve(shown_with(found, approval.fingerprint), user)
    return NodeOut(**summary(found.fresh()))


# --- many at once -----------------------------------------------------------------------------------------------


class BatchNew(SignInWith):
    """Servers to be registered together, with one sign-in."""

    hosts: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_LIST, pattern=r"^[^\x00]*$")] = Field(
        description="one a line: user@host:port, with ranges such as te[1-4]; name = user@host names it"
    )
    user: Line = Field("", description="for those without one")
    port: int = Field(22, ge=1, le=65535)
    agent: bool = Field(False, description="our own key is there already, or a key of the SSH agent")
    root: Literal["auto", "password", "none"] = "auto"
    sudo_password: Text = ""
    jump: Word = Field("", description="the node they are reached through")
    bastion: Line = Field("", description="user@host:port of a jump host that is to be no node")
    labels: list[Word] = Field(default_factory=list, max_length=16)

    def method(self) -> str:
        return "there" if self.agent else super().method()

    def typed(self) -> dict[str, Any]:
        """As the page's form has it."""
        jump = OTHER if self.bastion else f"node:{self.jump}" if self.jump else ""
        own = {"count": "many", "method": self.method(), "jump": jump, "labels": " ".join(self.labels)}
        return self.dict(exclude={"agent"}) | own


class CandidateOut(Schema):
    """One server of a batch. It waits for its approval while it is `offered`."""

    id: int
    name: str = Field(description="as typed, where that could not be read")
    state: str
    reason: str
    address: str
    port: int
    user: str
    is_bastion: bool
    fingerprint: str = Field(description="of the host key it shows; empty until it is known")
    node: str | None = Field(description="what it has become")


class BatchOut(Schema):
    id: int
    seconds_left: int = Field(description="for which the sign-in can still be used")
    candidates: list[CandidateOut]


class Shown(Schema):
    id: Number
    fingerprint: Line


class Approvals(Schema):
    approve: list[Shown] = Field(max_length=1000)


@router.post("/nodes/batches", response={202: BatchOut, **FAILURES}, tags=["nodes"])
def begin(request: HttpRequest, new: BatchNew) -> Status[BatchOut]:
    """Have many servers asked for their host keys. Nothing is sent to them; the batch tells what they show."""
    user = needs(request, OPERATOR).user
    form = NodeForm(new.typed())
    checked(form)
    labels = form.cleaned_data["labels"].split()
    batch = batches.begin(form.rows(), form.sign_in(), user, typed=form.typed(), labels=labels, **form.way())
    return Status(202, _batch(batch))


@router.get("/nodes/batches/{id}", response={200: BatchOut, **FAILURES}, tags=["nodes"])
def batch(request: HttpRequest, id: Path[Number]) -> BatchOut:
    """What has become of each server so far. A batch is seen by who began it."""
    return _batch(_own(needs(request, OPERATOR), id))


@router.post("/nodes/batches/{id}/approve", response={202: BatchOut, **FAILURES}, tags=["nodes"])
def approve(request: HttpRequest, id: Path[Number], approvals: Approvals) -> Status[BatchOut]:
    """Pin exactly these keys and register their servers. None is, where one shows another key by now."""
    found = _own(needs(request, OPERATOR), id)
    shown = {one.id: one.fingerprint for one in approvals.approve}
    unknown = shown.keys() - set(found.candidates.values_list("pk", flat=True))
    if unknown:
        raise Invalid(_("approve: the batch has no server %d.") % min(unknown))
    batches.approve(found, shown)
    return Status(202, _batch(found))


@router.post("/nodes/batches/{id}/again", response={202: BatchOut, **FAILURES}, tags=["nodes"])
def again(request: HttpRequest, id: Path[Number]) -> Status[BatchOut]:
    """Try those that failed once more, with the same sign-in."""
    found = _own(needs(request, OPERATOR), id)
    batches.again(found)
    return Status(202, _batch(found))


def _own(request: SignedIn, pk: int) -> Batch:
    return get_object_or_404(Batch, pk=pk, created_by=request.user)


def _batch(one: Batch) -> BatchOut:
    told = [_candidate(each) for each in one.candidates.select_related("node")]
    return BatchOut(id=one.pk, seconds_left=one.seconds_left, candidates=told)


def _candidate(one: Candidate) -> CandidateOut:
    names = ("state", "reason", "address", "port", "user", "is_bastion")
    return CandidateOut(
        id=one.pk, name=str(one), fingerprint=fingerprint(one.host_key), node=one.node.name if one.node else None,
        **{name: getattr(one, name) for name in names},
    )
