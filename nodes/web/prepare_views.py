"""Pages about several nodes at once, or how one is prepared: the Prepare form, and what is between nodes."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from controlplane.problems import Problem
from controlplane.roles import OPERATOR, SignedIn, role_required
from controlplane.views import go
from nodes import mesh, preparation
from nodes.models import Node
from nodes.web.pages import stories
from nodes.web.prepare_forms import PrepareForm

#: More than anybody selects on one page.
MOST = 200


def chosen(given: QueryDict) -> list[Node]:
    """The nodes that a form or an address names. Raises `Problem` where it names none."""
    names = given.getlist("node")[:MOST]
    found = list(Node.objects.filter(name__in=names).select_related("cluster"))
    if not found:
        raise Problem(_("No node is selected."), _("Tick the nodes that it is about, then press the button again."))
    return found


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def how(request: SignedIn) -> HttpResponse:
    """Ask how the selected nodes are to be prepared, remember it on each, and prepare them."""
    found = chosen(request.POST if request.method == "POST" else request.GET)
    if request.method == "POST" and "kind" not in request.POST:  # from the list, where they were ticked
        return redirect(_address("nodes-how", found))
    form = PrepareForm(request.POST if request.method == "POST" else None, known=preparation.options_of(found[0]))
    if request.method == "POST" and form.is_valid():
        refused = []
        for node in found:
            try:
                preparation.prepare(node, request.user, form.options())
            except Problem as problem:
                refused.append((node, problem))
        return _begun(request, found, refused)
    rootless = [node for node in found if not preparation.root_way(node)]
    page = {"form": form, "nodes": found, "rootless": rootless, "back": _back(found)}
    return render(request, "nodes/prepare.html", page, status=409 if form.is_bound else 200)


@require_POST
@role_required(OPERATOR)
def many(request: SignedIn) -> HttpResponse:
    """Prepare the selected nodes, each as it was prepared last."""
    found = chosen(request.POST)
    return _begun(request, found, preparation.prepare_many(found, request.user))


def _begun(request: SignedIn, found: list[Node], refused: list[tuple[Node, Problem]]) -> HttpResponse:
    for node, problem in refused:
        messages.error(request, f"{node.name}: {problem.told}")
    begun = len(found) - len(refused)
    if begun > 1:
        said = ngettext("%(count)d node is being prepared.", "%(count)d nodes are being prepared.", begun)
        messages.success(request, said % {"count": begun})
    return go(request, _back(found))


def _back(found: list[Node]) -> str:
    return found[0].get_absolute_url() if len(found) == 1 else reverse("nodes")


@require_POST
@role_required(OPERATOR)
def look(request: SignedIn) -> HttpResponse:
    """From the list, where nodes were ticked, to what is between them."""
    return redirect(_address("nodes-between", chosen(request.POST)))


@require_safe
def between(request: HttpRequest) -> HttpResponse:
    """What was measured between the selected nodes; all of them where none is named."""
    found = chosen(request.GET) if request.GET.getlist("node") else list(Node.objects.select_related("cluster")[:24])
    about = [mesh.subject(found)] if found else []
    page = {"mesh": mesh.matrix(found), "nodes": found, "stories": stories(mesh.runs_about(about), 3)}
    return render(request, "nodes/between.html", page)


@require_POST
@role_required(OPERATOR)
def measure(request: SignedIn) -> HttpResponse:
    """Begin to measure between the selected nodes, and show it."""
    found = chosen(request.POST)
    mesh.start(found, request.user)
    return redirect(_address("nodes-between", found))


def _address(page: str, found: list[Node]) -> str:
    asked = QueryDict(mutable=True)
    asked.setlist("node", [node.name for node in found])
    return f"{reverse(page)}?{asked.urlencode()}"
