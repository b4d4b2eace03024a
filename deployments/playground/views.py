"""The playground: a chat with a deployment, through the same gateway and the same door as any program."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from controlplane.roles import SignedIn
from deployments.gateway.keys import session_token
from deployments.models import Deployment
from deployments.states import SERVING


@require_safe
def playground(request: SignedIn) -> HttpResponse:
    found = sorted(Deployment.objects.all(), key=lambda deployment: deployment.state not in SERVING)
    wanted = request.GET.get("model")
    named = [deployment for deployment in found if deployment.name == wanted]
    chosen = next(iter(named + found), None)
    page = {
        "deployments": found,
        "chosen": chosen,
        "serving": SERVING,
        "token": session_token(request.user),
    }
    return render(request, "playground.html", page)
