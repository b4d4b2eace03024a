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
from deployments.spec import LARGEST_FILE, from_yaml

#: Revisions that the history shows.
MOST_SHOWN = 50


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


@require_POST
@role_required(OPERATOR)
def restore(request: SignedIn, name: str, number: int) -> HttpResponse:
    """Go back: a new revision with the content of an old one."""
    found = get_object_or_404(Deployment, name=name)
    if revisions.roll_back(found, number, request.user):
        said = _("Revision %(number)d is like revision %(old)d.") % {"number": found.revision, "old": number}
        messages.success(request, said)
    else:
        messages.info(request, _("Nothing was changed."))
    return redirect("deployment-history", name)


@require_safe
def export(request: HttpRequest, name: str) -> HttpResponse:
    """The deployment's file, as `manage.py apply` takes it."""
    found = get_object_or_404(Deployment, name=name)
    response = HttpResponse(planning.spec_of(found).to_yaml(), content_type="application/yaml; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{found.name}.yaml"'
    return response


class ImportForm(DeckForm):
    """YAML typed or pasted; ``specs`` once it is valid."""

    text = forms.CharField(
        label=gettext_lazy("YAML"),
        max_length=LARGEST_FILE,
        widget=forms.Textarea(attrs={"rows": 18, "class": "mono", "spellcheck": "false"}),
        help_text=gettext_lazy("As Export writes it; several deployments are parted by a line with ---."),
    )


@require_http_methods(["GET", "POST"])
@role_required(OPERATOR)
def import_(request: SignedIn) -> HttpResponse:
    """Make or change deployments as a file says: all of it can be, or nothing is done."""
    form = ImportForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            return _apply(request, form.cleaned_data["text"])
        except Problem as problem:
            form.problem = problem
    return render(request, "deployments/import.html", {"form": form}, status=409 if form.is_bound else 200)


def _apply(request: SignedIn, text: str) -> HttpResponse:
    specs = from_yaml(text)
    for spec in specs:
        revisions.check(spec)
    sentences = {
        "created": _("%(name)s is made."), "changed": _("%(name)s is changed: revision %(number)d."),
        "unchanged": _("%(name)s is as the file says already."),
    }  # fmt: skip
    for spec in specs:
        done = revisions.apply(spec, request.user, _("imported"))
        messages.success(request, sentences[done.what] % {"name": spec.name, "number": done.deployment.revision})
    return redirect("deployment", specs[0].name) if len(specs) == 1 else redirect("deployments")
