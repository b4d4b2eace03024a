"""Aliases: further names that requests may use for a deployment, so that programs need not change with the model."""

from __future__ import annotations

import re

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments.gateway import routes
from deployments.models import Alias, Deployment
from deployments.names import LONGEST

MOST = 50  # of one deployment
#: What names of models look like elsewhere: "gpt-4o", "Qwen/Qwen2.5-14B-Instruct", "llama3:8b".
NAME = r"[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?"


def add(deployment: Deployment, name: str, by: User | None) -> Alias:
    """Let requests use ``name`` for the deployment. Raises `Problem` where the name cannot be, or leads elsewhere."""
    if len(name) > LONGEST or not re.fullmatch(NAME, name):
        raise Problem(
            _("“%(name)s” cannot be a model's name.") % {"name": name[:80]},
            _("Use letters, digits and . _ - : / between them, at most 120, for example gpt-4o."),
        )
    check_free(name)
    if Alias.objects.filter(deployment=deployment).count() >= MOST:
        raise Problem(_("A deployment has at most %d aliases.") % MOST, _("Remove one that nothing uses."))
    try:
        with transaction.atomic():
            made = Alias.objects.create(name=name, deployment=deployment, created_by=by)
    except IntegrityError:  # between the look and now
        check_free(name)
        raise
    routes.poke()
    return made


def check_free(name: str) -> None:
    """Raise a `Problem` where requests use the name already: a deployment's, or an alias of one."""
    if Deployment.objects.filter(name=name).exists():
        raise Problem(_("A deployment named %(name)s exists already.") % {"name": name}, _("Choose another name."))
    found = Alias.objects.filter(name=name).select_related("deployment").first()
    if found is not None:
        said = _("%(name)s is an alias of %(deployment)s already.") % {"name": name, "deployment": found.deployment}
        raise Problem(said, _("Remove it there first, or choose another name."))


def all_names() -> set[str]:
    """Every name that requests use."""
    return {*Deployment.objects.values_list("name", flat=True), *Alias.objects.values_list("name", flat=True)}


def remove(deployment: Deployment, name: str) -> None:
    """Requests with this name are refused from now on. Does nothing where it is no alias of the deployment."""
    Alias.objects.filter(deployment=deployment, name=name).delete()
    routes.poke()
