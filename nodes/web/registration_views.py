"""Pages that register servers: the form, what was understood of a pasted list, host keys to approve, the progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from controlplane.problems import Problem
from controlplane.roles import OPERATOR, SignedIn, role_required
from controlplane.views import go
from nodes import access, batches
from nodes.candidates import Batch, Candidate
from nodes.hostlist import Bad, Row
from nodes.models import Node
from nodes.states import CandidateState
from nodes.web import forms
from nodes.web.forms import NodeForm
from nodes.web.pages import fingerprint, key_file


@dataclass(frozen=True)
class KeyLine:
    """A candidate with its host key as a person compares it."""

    candidate: Candidate
    fingerprint: str
    type: str
    file: str
    same_as: str  # the name of another server that shows the same key: a cloned disk, or not the server it seems


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def new(request: SignedIn) -> HttpResponse:
    """Ask where the servers are; then have their host keys asked for, and go on to the page that shows them."""
    form = NodeForm(request.POST or None, initial=_typed_before(request))
    if request.method == "POST" and form.is_valid():
        batch = batches.begin(form.rows(), form.sign_in(), request.user, typed=form.typed(),
                              labels=form.cleaned_data["labels"].split(), **form.way())
        return redirect(batch)
    page = {"form": form, "own_line": access.own_line(), **_rows(form.rows() if form.is_bound and form.many else [])}
    return render(request, "nodes/new.html", page, status=409 if form.is_bound else 200)


def _typed_before(request: SignedIn) -> dict[str, Any]:
    """Back from the host keys, everything but the secrets is still there."""
    number = request.GET.get("from", "")
    if not (number.isdecimal() and number.isascii() and len(number) < 12):
        return {}
    batch = Batch.objects.filter(pk=number, created_by=request.user).first()
    return batch.typed if batch else {}


@require_POST
@role_required(OPERATOR)
def understood(request: HttpRequest) -> HttpResponse:
    """What becomes of a list while it is typed. Nothing is asked of anybody."""
    port = request.POST.get("port", "")
    rows = forms.understood(request.POST.get("hosts", ""), request.POST.get("user", "")[:64],
                            int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 22)
    return render(request, "nodes/understood.html", _rows(rows))


def _rows(rows: Sequence[Row | Bad]) -> dict[str, Any]:
    kinds = Counter(type(row) for row in rows)
    return {"rows": rows, "good": kinds[Row], "bad": kinds[Bad]}


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def approve(request: SignedIn, pk: int) -> HttpResponse:
    """Show the host keys and what becomes of each server; on approval pin exactly these keys and register them."""
    batch = _own_batch(request, pk)
    if request.method == "POST":
        try:
            batches.approve(batch, _approved(request))
        except Problem as problem:
            return render(request, "nodes/approve.html", _page(batch) | {"problem": problem}, status=409)
        return redirect(batch)
    page = _page(batch)
    single = page["single"]
    if single is not None and single.candidate.node is not None:
        messages.success(request, _("%(name)s is registered. Its key is pinned.") % {"name": single.candidate.name})
        return go(request, single.candidate.node)
    return render(request, "nodes/approve.html", page)


@require_POST
@role_required(OPERATOR)
def again(request: SignedIn, pk: int) -> HttpResponse:
    """Try those that failed once more, with the same sign-in."""
    batch = _own_batch(request, pk)
    batches.again(batch)
    return go(request, batch)


def _own_batch(request: SignedIn, pk: int) -> Batch:
    """A registration belongs to who began it: the sign-in is theirs."""
    batch = get_object_or_404(Batch, pk=pk)
    if batch.created_by_id != request.user.pk:
        raise Http404
    return batch


def _approved(request: HttpRequest) -> dict[int, str]:
    """What was ticked: "<candidate> <fingerprint>", each."""
    pairs = (value.partition(" ") for value in request.POST.getlist("approve")[:1000])
    return {int(pk): shown for pk, _space, shown in pairs if pk.isascii() and pk.isdigit() and len(pk) < 12}


def _page(batch: Batch) -> dict[str, Any]:
    candidates = list(batch.candidates.select_related("node"))
    seen = Counter(each.host_key for each in candidates if each.host_key)
    known = dict(Node.objects.exclude(host_key="").values_list("host_key", "name"))
    lines = [_line(each, candidates, seen, known) for each in candidates]
    states = Counter(each.state for each in candidates)
    busy = states[CandidateState.ASKING] + states[CandidateState.APPROVED]
    retry = any(each.state == CandidateState.FAILED and each.address for each in candidates)
    return {
        "batch": batch,
        "lines": lines,
        "single": lines[0] if len(lines) == 1 else None,
        "busy": busy,
        "settled": len(lines) - busy,
        "registered": states[CandidateState.REGISTERED],
        "failed": states[CandidateState.FAILED],
        "offered": states[CandidateState.OFFERED],
        "can_retry": retry and bool(batch.seconds_left),
        "bastion_first": any(each.is_bastion and each.state != CandidateState.REGISTERED for each in candidates),
        "files": sorted({line.file for line in lines if line.file}),
    }


def _line(candidate: Candidate, all_of_them: list[Candidate], seen: Counter[str], known: dict[str, str]) -> KeyLine:
    key = candidate.host_key
    if not key:
        return KeyLine(candidate, "", "", "", "")
    twins = (each.name for each in all_of_them if each.host_key == key and each.pk != candidate.pk)
    same_as = next(twins, "") if seen[key] > 1 else known.get(key, "")
    if candidate.node_id:
        same_as = ""
    return KeyLine(candidate, fingerprint(key), key.split()[0].removeprefix("ssh-").upper(), key_file(key), same_as)
