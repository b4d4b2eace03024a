"""The page of keys for the gateway. A key is shown once, in the answer that made it, and kept nowhere."""

from __future__ import annotations

from django import forms
from django.contrib import messages
from django.db.models import Q, QuerySet
from django.http import HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods, require_POST

from controlplane.forms import DeckForm
from controlplane.roles import ADMIN, OPERATOR, SignedIn, has_role, role_required
from controlplane.views import go
from deployments.gateway import keys as gateway_keys
from deployments.models import ApiKey, Deployment
from deployments.states import SERVING


class KeyForm(DeckForm):
    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=80,
        help_text=gettext_lazy("What uses it, for example batch-jobs: what stops when you revoke it."),
    )


@require_http_methods(["GET", "HEAD", "POST"])
def keys(request: SignedIn) -> HttpResponseBase:
    """The list; a POST makes a key (operators) and shows it, this once."""
    return _create(request) if request.method == "POST" else _page(request, form=KeyForm())


@role_required(OPERATOR)
def _create(request: SignedIn) -> HttpResponse:
    form = KeyForm(request.POST)
    if not form.is_valid():
        return _page(request, form=form, status=409)
    key, plain = gateway_keys.create(request.user, form.cleaned_data["name"])
    response = _page(request, form=KeyForm(), made=key, plain=plain)
    response.headers["Cache-Control"] = "no-store"
    return response


def _page(request: SignedIn, status: int = 200, **more: object) -> HttpResponse:
    context = {
        "keys": _visible(request).select_related("owner"),
        "base_url": request.build_absolute_uri("/v1"),
        "example": Deployment.objects.filter(state__in=SERVING).first(),
        **more,
    }
    return render(request, "keys.html", context, status=status)


def _visible(request: SignedIn) -> QuerySet[ApiKey]:
    """Everybody sees their own keys, an admin all of them."""
    mine = Q() if has_role(request.user, ADMIN) else Q(owner=request.user)
    return ApiKey.objects.filter(mine)


@require_POST
@role_required(OPERATOR)
def key_revoke(request: SignedIn, pk: int) -> HttpResponse:
    key = get_object_or_404(_visible(request), pk=pk)
    gateway_keys.revoke(key)
    messages.success(request, _("%(name)s is revoked. Requests with it are refused.") % {"name": key.name})
    return go(request, "keys")
