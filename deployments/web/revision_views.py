"""Pages of a deployment's revisions: the history with what differs, going back, YAML out and in."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from controlplane.forms import DeckForm
from controlplane.problems import Problem
from controlplane.roles import OPERATOR, SignedIn, role_required
from deployments import planning, revisions
from deployments.models import Deployment
from deployments.rollout import effects
from deployments.rollout.replacing import WAYS
from deployments.spec import LARGEST_FILE, from_yaml

#: Revisions that the history shows.
MOST_SHOWN = 50
#: Deployments of a file of which it is said beforehand what would become of them.
MOST_PREVIEWED = 12


@require_safe
def history(request: HttpRequest, name: str) -> HttpResponse:
    """Every revision with what it changed, the newest first, and the file of the newest."""
    found = get_object_or_404(Deployment, name=name)
    kept = list(found.revisions.select_related("created_by")[: MOST_SHOWN + 1])
    older: list[dict[str, Any]] = [one.spec for one in kept[1:]] + [{}]
    told = [
        {"revision": one, "lines": revisions.difference(before, one.spec) if before else []}
        for one, before in zip(kept, older, strict=True)
    ]
    page = {"deployment": found, "told": told[:MOST_SHOWN], "yaml": planning.spec_of(found).to_yaml()}
    return render(request, "deployments/history.html", page)


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def restore(request: SignedIn, name: str, number: int) -> HttpResponse:
    """Go back: a new revision with the content of an old one. Asked for, what that changes and how it would run."""
    found = get_object_or_404(Deployment, name=name)
    if request.method == "POST":
        return _go_back(request, found, number)
    told = effects.preview(revisions.earlier(found, number))
    page = {"deployment": found, "number": number, "told": told, "way": WAYS.get(told.way)}
    return render(request, "deployments/restore.html", page)


def _go_back(request: SignedIn, found: Deployment, number: int) -> HttpResponse:
    if revisions.roll_back(found, number, request.user):
        said = _("Revision %(number)d is like revision %(old)d.") % {"number": found.revision, "old": number}
        messages.success(request, said)
    else:
        messages.info(request, _("Nothing was changed."))
    if "start" not in request.POST:
        return redirect("deployment-history", found.name)
    bring_about(request, found, start=True)
    return redirect(found)


def bring_about(request: SignedIn, found: Deployment, *, start: bool) -> None:
    """Have the newest revision run; where it cannot now, the page that comes next says why."""
    try:
        effects.take(found, request.user, start=start)
    except Problem as problem:  # what was saved stays
        messages.warning(request, str(problem))


@require_safe
def export(request: HttpRequest, name: str) -> HttpResponse:
    """The deployment's file, as `manage.py apply` takes it."""
    found = get_object_or_404(Deployment, name=name)
    response = HttpResponse(planning.spec_of(found).to_yaml(), content_type="application/yaml; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{found.name}.yaml"'
    return response


class ImportForm(DeckForm):
    """YAML typed or pasted, and whether what does not run is to be started too."""

    text = forms.CharField(
        label=gettext_lazy("YAML"),
        max_length=LARGEST_FILE,
        widget=forms.Textarea(attrs={"rows": 18, "class": "mono", "spellcheck": "false", "wrap": "off"}),
        help_text=gettext_lazy("As Export writes it; several deployments are parted by a line with ---."),
    )
    start = forms.BooleanField(label=gettext_lazy("Roll out what does not run, too"), required=False)


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def import_(request: SignedIn) -> HttpResponse:
    """Make or change deployments as a file says: all of it can be, or nothing is done."""
    form = ImportForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            return _apply(request, form)
        except Problem as problem:
            form.problem = problem
    return render(request, "deployments/import.html", {"form": form}, status=409 if form.is_bound else 200)


def _apply(request: SignedIn, form: ImportForm) -> HttpResponse:
    specs = from_yaml(form.cleaned_data["text"])
    for spec in specs:
        revisions.check(spec)
    sentences = {
        "created": _("%(name)s is made."), "changed": _("%(name)s is changed: revision %(number)d."),
        "unchanged": _("%(name)s is as the file says already."),
    }  # fmt: skip
    for spec in specs:
        done = revisions.apply(spec, request.user, _("imported"))
        messages.success(request, sentences[done.what] % {"name": spec.name, "number": done.deployment.revision})
        if "save" not in request.POST:
            bring_about(request, done.deployment, start=form.cleaned_data["start"])
    return redirect("deployment", specs[0].name) if len(specs) == 1 else redirect("deployments")


@require_POST
@role_required(OPERATOR)
def preview(request: SignedIn) -> HttpResponse:
    """What the file would do, as far as it is typed: asked for on every pause in typing."""
    text = request.POST.get("text", "").strip()
    page: dict[str, Any] = {}
    try:
        specs = from_yaml(text) if text else []
        told = [effects.preview(spec) for spec in specs[:MOST_PREVIEWED]]
        page = {"told": [(one, WAYS.get(one.way)) for one in told], "more": len(specs) - len(told)}
    except Problem as problem:
        page = {"problem": problem}
    return render(request, "deployments/preview.html", page)
