"""Pages of nodes: list, register, approve the host key, detail. They call the stories and never a host."""

from __future__ import annotations

import time
from typing import Any, TypedDict

from django.contrib import messages
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from controlplane.problems import Problem
from controlplane.roles import ADMIN, OPERATOR, SignedIn, role_required
from controlplane.views import go
from nodes import preparation, registration
from nodes.forms import NodeForm
from nodes.models import Node, Run
from nodes.pages import fact_rows, fingerprint, key_file, sources, stories
from nodes.preflight import findings

PENDING = "pending_node"
PENDING_SECONDS = 600


class Pending(TypedDict):
    """A registration that waits for the host key to be approved; the login is sealed."""

    login: str
    name: str
    address: str
    port: int
    user: str
    key_line: str
    key_type: str
    fingerprint: str
    at: float


@require_safe
def nodes(request: HttpRequest) -> HttpResponse:
    return render(request, "nodes/list.html", {"nodes": Node.objects.select_related("cluster")})


@require_safe
def node(request: HttpRequest, name: str) -> HttpResponse:
    found = get_object_or_404(Node, name=name)
    told = stories(Run.objects.filter(Q(steps__node=found) | Q(about=found.subject)).distinct())
    page: dict[str, Any] = {
        "node": found,
        "stories": told,
        "sources": sources(told),
        "facts": fact_rows(found),
        "findings": findings(found.facts) if found.facts_at else [],
        "pinned": fingerprint(found.host_key),
        "offered": fingerprint(found.offered_host_key),
        "offered_file": key_file(found.offered_host_key),
    }
    return render(request, "nodes/detail.html", page)


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def new(request: SignedIn) -> HttpResponse:
    """Ask where the server is; then ask its host key and go on to the page that shows it."""
    # Back from the fingerprint, everything but the secrets is still there.
    form = NodeForm(request.POST or None, initial=_pending(request))
    if request.method == "POST" and form.is_valid():
        try:
            request.session[PENDING] = _offer(form.login())
            return redirect("node-approve")
        except Problem as problem:
            form.problem = problem
    return render(request, "nodes/new.html", {"form": form}, status=409 if form.is_bound else 200)


def _offer(login: registration.Login) -> Pending:
    key = registration.offered_key(login)
    return Pending(
        login=login.seal(),
        name=login.name,
        address=login.address,
        port=login.port,
        user=login.user,
        key_line=key.line,
        key_type=key.type,
        fingerprint=key.fingerprint,
        at=time.time(),
    )


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def approve(request: SignedIn) -> HttpResponse:
    """Show the fingerprint; on approval pin exactly this key and register the node."""
    pending = _pending(request)
    if pending is None:
        raise Problem(
            _("No host key waits for approval: an unfinished registration is forgotten after 10 minutes."),
            _("Fill in the registration form again."),
        )
    if request.method != "POST":
        return render(request, "nodes/approve.html", _approval(pending))
    if request.POST.get("fingerprint") != pending["fingerprint"]:
        raise Problem(
            _("Another registration was begun meanwhile; the fingerprint on this page waits no more."),
            _("Open the page again and compare the fingerprint it shows now."),
        )
    return _register(request, pending)


def _pending(request: HttpRequest) -> Pending | None:
    """The registration that waits; one that waited for too long is dropped."""
    pending: Pending | None = request.session.get(PENDING)
    if pending is None or time.time() - pending["at"] <= PENDING_SECONDS:
        return pending
    del request.session[PENDING]
    return None


def _approval(pending: Pending) -> dict[str, Any]:
    return {"pending": pending, "key_file": key_file(pending["key_line"])}


def _register(request: SignedIn, pending: Pending) -> HttpResponse:
    try:
        login = registration.Login.unseal(pending["login"], ttl=PENDING_SECONDS)
        registered = registration.register(login, pending["key_line"], request.user)
    except Problem as problem:
        return render(request, "nodes/approve.html", _approval(pending) | {"problem": problem}, status=409)
    del request.session[PENDING]
    messages.success(request, _("%(name)s is registered. Its key is pinned.") % {"name": registered.name})
    return redirect(registered)


@require_POST
@role_required(OPERATOR)
def prepare(request: SignedIn, name: str) -> HttpResponse:
    found = get_object_or_404(Node, name=name)
    preparation.prepare(found, request.user)
    return go(request, found)


@require_POST
@role_required(OPERATOR)
def check(request: SignedIn, name: str) -> HttpResponse:
    found = get_object_or_404(Node, name=name)
    preparation.check(found, request.user)
    return go(request, found)


@require_POST
@role_required(ADMIN)
def approve_key(request: SignedIn, name: str) -> HttpResponse:
    """Pin the key the host shows now, if it still is the one whose fingerprint the admin saw."""
    found = get_object_or_404(Node, name=name)
    if request.POST.get("fingerprint") != fingerprint(found.offered_host_key):
        raise Problem(
            _("The host shows yet another key by now."), _("Reload the page and compare the new fingerprint.")
        )
    registration.approve_new_key(found, request.user)
    messages.success(request, _("The new key of %(name)s is pinned.") % {"name": found.name})
    return go(request, found)


@require_POST
@role_required(ADMIN)
def remove(request: SignedIn, name: str) -> HttpResponse:
    found = get_object_or_404(Node, name=name)
    registration.forget(found, request.user)
    messages.success(request, _("%(name)s is removed from Quarterdeck.") % {"name": name})
    return go(request, "nodes")
