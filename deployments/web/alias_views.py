"""The aliases of a deployment: added and removed on its page."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST

from controlplane.roles import OPERATOR, SignedIn, role_required
from controlplane.views import go
from deployments import aliases
from deployments.models import Deployment


@require_POST
@role_required(OPERATOR)
def alias_add(request: SignedIn, name: str) -> HttpResponse:
    found = get_object_or_404(Deployment, name=name)
    aliases.add(found, request.POST.get("alias", "").strip(), request.user)
    return go(request, found)


@require_POST
@role_required(OPERATOR)
def alias_remove(request: SignedIn, name: str) -> HttpResponse:
    found = get_object_or_404(Deployment, name=name)
    aliases.remove(found, request.POST.get("alias", ""))
    return go(request, found)
