"""Pages on which a deployment is made and changed: new, edit, clone, and the plan beside the form."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from controlplane.problems import Problem
from controlplane.roles import OPERATOR, SignedIn, role_required
from deployments import accepted, dry_run, planning, revisions
from deployments.models import Deployment
from deployments.planning import Planned
from deployments.rollout import exchange
from deployments.rollout import stories as rollout
from deployments.rollout.replacing import WAYS
from deployments.spec import Spec
from deployments.states import AT_REST, SERVING
from deployments.web import command_page, plan_page
from deployments.web.forms import FLAGS, LAYOUT, DeploymentForm, initial
from deployments.web.revision_views import bring_about
from nodes.models import Node

#: Fields whose errors are told while somebody types; others are only not filled in yet.
_SHOWN = {*FLAGS, *LAYOUT, "copies", "port", "extra", "where"}
_MODEL = {"path", "hub_id"}


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def new(request: SignedIn) -> HttpResponse:
    """An empty form, or one filled in like the deployment that ``?like=`` names."""
    form = DeploymentForm(request.POST or None, initial=_start(request))
    if request.method == "POST" and form.is_valid():
        try:
            return redirect(_create(request, form))
        except Problem as problem:
            form.problem = problem
    page = {"form": form, "places": form.fields["where"].choices, "any_node": Node.objects.exists()}  # type: ignore[attr-defined]
    return render(request, "deployments/new.html", page, status=409 if form.is_bound else 200)


def _start(request: HttpRequest) -> dict[str, object]:
    like = Deployment.objects.filter(name=request.GET.get("like", "")).first()
    if like is not None:
        return initial(revisions.clone(like))
    return {"where": f"node:{request.GET['node']}"} if "node" in request.GET else {}


def _create(request: SignedIn, form: DeploymentForm) -> Deployment:
    made = revisions.create(form.spec, request.user, form.cleaned_data["note"])
    if "start" in request.POST:
        try:
            rollout.start(made, request.user)
        except Problem as problem:  # the deployment exists: its own page is the place to go on from
            messages.warning(request, str(problem))
    return made


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def edit(request: SignedIn, name: str) -> HttpResponse:
    """The same form over what the deployment is; saving makes a new revision."""
    found = get_object_or_404(Deployment, name=name)
    form = DeploymentForm(request.POST or None, initial=initial(planning.spec_of(found)), editing=found)
    if request.method == "POST" and form.is_valid():
        try:
            return _save(request, found, form)
        except Problem as problem:
            form.problem = problem
    page = {"form": form, "deployment": found, "runs": found.state not in AT_REST}
    return render(request, "deployments/edit.html", page, status=409 if form.is_bound else 200)


def _save(request: SignedIn, found: Deployment, form: DeploymentForm) -> HttpResponse:
    changed = revisions.change(found, form.spec, request.user, form.cleaned_data["note"])
    if not changed:
        messages.info(request, _("Nothing was changed."))
    else:
        messages.success(request, _("Revision %(number)d is saved.") % {"number": found.revision})
    if "start" in request.POST:
        bring_about(request, found, start=True)
    return redirect(found)


@require_POST
@role_required(OPERATOR)
def plan(request: SignedIn) -> HttpResponse:
    """What the form would give, as far as it is filled in: asked for on every pause in typing."""
    besides = Deployment.objects.filter(name=request.GET.get("edit", "")).first()
    form = DeploymentForm(request.POST, editing=besides)
    form.is_valid()
    page: dict[str, object] = {"wrong": [(form[name].label, form.errors[name]) for name in form.errors.keys() & _SHOWN]}
    try:
        for name in _MODEL & form.errors.keys():  # not typed to its end
            raise Problem(str(form.errors[name][0]))
        spec = form.spec
        planned = planning.plan_for(spec, besides)
        page["shown"] = plan_page.shown(planned)
        page["verdict"] = _verdict(spec, planned)
        page |= _more(spec, planned, besides)
    except Problem as problem:
        page["problem"] = problem
    return render(request, "deployments/plan.html", page)


def _verdict(spec: Spec, planned: Planned) -> dry_run.Verdict | None:
    """What the vLLM of the first node says of the typed options together, in the planned layout."""
    options, layout = dict(planned.looked.options), planned.layout
    if not options or planned.looked.problems:
        return None
    if layout:
        options |= {"tensor-parallel-size": layout.tensor, "pipeline-parallel-size": layout.pipeline}
    place = planning.place_of(spec)
    head = place if isinstance(place, Node) else place.head
    return dry_run.of(head, spec.model, options, planning.executor_for(spec, planned.plan))


def _more(spec: Spec, planned: Planned, besides: Deployment | None) -> dict[str, object]:
    """The commands, and how what runs would be replaced; neither stands in the way of the plan."""
    try:
        draft = planning.draft_of(spec, planned, besides)
        gap = exchange.forecast(draft) if besides and besides.state in SERVING else None
        commands = command_page.of_deployment(draft, command_page.would_be(draft))
        return {"commands": commands, "gap": gap, "gap_words": WAYS.get(gap)}
    except Problem as problem:
        return {"commands_problem": str(problem)}


@require_safe
def flags(request: HttpRequest, name: str) -> HttpResponse:
    """Every flag that the vLLM of a node accepts."""
    node = get_object_or_404(Node, name=name)
    return render(request, "deployments/flags.html", {"node": node, "accepted": accepted.of(node)})


@require_safe
def commands(request: HttpRequest, name: str) -> HttpResponse:
    """What runs for the deployment now, or would with its present plan."""
    found = get_object_or_404(Deployment.objects.select_related("cluster__head"), name=name)
    page: dict[str, object] = {"deployment": found}
    try:
        replicas = list(found.replicas.select_related("node", "deployment__cluster__head"))
        page["commands"] = command_page.of_deployment(found, replicas or command_page.would_be(found))
    except Problem as problem:
        page["commands_problem"] = str(problem)
    return render(request, "deployments/commands_page.html", page)
