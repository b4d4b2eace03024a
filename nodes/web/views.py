"""Pages of nodes: list, register, approve the host key, detail. They call the stories and never a host."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from controlplane.roles import ADMIN, OPERATOR, SignedIn, role_required
from controlplane.views import go
from nodes import acquaintances, preparation, registration, removal
from nodes.models import Node, Run
from nodes.preflight import findings
from nodes.web.pages import changed_key, fact_rows, fingerprint, shown_with, sources, stories


@require_safe
def nodes(request: HttpRequest) -> HttpResponse:
    return render(request, "nodes/list.html", {"nodes": Node.objects.select_related("cluster", "jump", "bastion")})


@require_safe
def node(request: HttpRequest, name: str) -> HttpResponse:
    found = Node.objects.select_related("cluster", "jump", "bastion").filter(name=name).first()
    if found is None and request.headers.get("HX-Request"):  # the page of a node that was just removed, drawn anew
        messages.success(request, _("%(name)s is removed from Quarterdeck.") % {"name": name})
        return go(request, "nodes")
    if found is None:
        raise Http404
    told = stories(Run.objects.filter(Q(steps__node=found) | Q(about=found.subject)).distinct())
    page: dict[str, Any] = {
        "node": found,
        "stories": told,
        "sources": sources(told),
        "facts": fact_rows(found),
        "findings": findings(found.facts) if found.facts_at else [],
        "pinned": fingerprint(found.host_key),
        "changed": changed_key(found),
        "removal_failed": removal.has_failed(found),
        "knowing": acquaintances.of(found) if found.facts.blocks else None,
    }
    return render(request, "nodes/detail.html", page)


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
    host = shown_with(found, request.POST.get("fingerprint", ""))
    registration.approve(host, request.user)
    messages.success(request, _("The new key of %(name)s is pinned.") % {"name": str(host)})
    trusting = ", ".join(one.name for one in acquaintances.trusting(found)) if host == found else ""
    if trusting:
        said = _("%(names)s still expect the old key: prepare them again, so that they sign in to %(name)s.")
        messages.warning(request, said % {"names": trusting, "name": found.name})
    return go(request, found)


@require_POST
@role_required(ADMIN)
def remove(request: SignedIn, name: str) -> HttpResponse:
    """Take what is ours off the server as a run, or (``what`` is "leave") only forget it."""
    found = get_object_or_404(Node, name=name)
    what = request.POST.get("what", "leave")
    if what != "leave":
        removal.remove(found, request.user, models=what == "all")
        return go(request, found)
    removal.forget(found, request.user)
    messages.success(request, _("%(name)s is removed from Quarterdeck.") % {"name": name})
    return go(request, "nodes")
