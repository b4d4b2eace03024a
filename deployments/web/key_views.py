"""The pages of keys for the gateway. A key is shown once, in the answer that made it, and kept nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.contrib import messages
from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Q, QuerySet, Sum
from django.http import HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from controlplane.problems import Problem
from controlplane.roles import ADMIN, OPERATOR, SignedIn, has_role, role_required
from controlplane.views import go
from deployments.gateway import keys as gateway_keys
from deployments.models import ApiKey, Deployment, KeyLimits, Usage
from deployments.states import SERVING
from deployments.web.key_forms import KeyForm

WEEK = 7  # days, today included


@dataclass(frozen=True)
class KeyLine:
    """A key as the list shows it."""

    key: ApiKey
    state: str  # active, expired or revoked
    limits: list[str]
    day_limit: int | None
    today: int = 0  # tokens
    requests: int = 0  # of the last week

    @property
    def last_day(self) -> datetime | None:
        """A moment of it: keys end at midnight."""
        return self.key.expires_at and self.key.expires_at - timedelta(seconds=1)

    @property
    def of_day(self) -> int:
        """Percent of the day's tokens that are used."""
        return min(100, self.today * 100 // self.day_limit) if self.day_limit else 0


@require_http_methods(["GET", "HEAD", "POST"])
def keys(request: SignedIn) -> HttpResponseBase:
    """The list; a POST makes a key (operators) and shows it, this once."""
    return _create(request) if request.method == "POST" else _page(request, form=KeyForm())


@role_required(OPERATOR)
def _create(request: SignedIn) -> HttpResponse:
    form = KeyForm(request.POST)
    if not form.is_valid():
        return _page(request, form=form, status=409)
    key, plain = gateway_keys.create(request.user, form.cleaned_data["name"], form.expires_at)
    form.keep(key)
    response = _page(request, form=KeyForm(), made=key, plain=plain)
    response.headers["Cache-Control"] = "no-store"
    return response


def _page(request: SignedIn, status: int = 200, **more: object) -> HttpResponse:
    context = {
        "lines": lines(visible_keys(request.user).select_related("owner", "limits")),
        "base_url": request.build_absolute_uri("/v1"),
        "example": Deployment.objects.filter(state__in=SERVING).first(),
        **more,
    }
    return render(request, "keys.html", context, status=status)


def visible_keys(user: User | AnonymousUser) -> QuerySet[ApiKey]:
    """Everybody sees their own keys, an admin all of them."""
    mine = Q() if has_role(user, ADMIN) else Q(owner=user)
    return ApiKey.objects.filter(mine)


def lines(found: QuerySet[ApiKey]) -> list[KeyLine]:
    """The keys with what they may do and did: usable ones first."""
    today = datetime.now(UTC).date()
    recent = Usage.objects.filter(key__in=found, day__gt=today - timedelta(days=WEEK)).order_by()
    requests = dict(recent.values_list("key").annotate(Sum("requests")))
    spent = recent.filter(day=today).values_list("key").annotate(Sum("prompt_tokens"), Sum("completion_tokens"))
    tokens = {key: prompt + completion for key, prompt, completion in spent}
    told = [_line(key, tokens.get(key.pk, 0), requests.get(key.pk, 0)) for key in found]
    return sorted(told, key=lambda line: line.state != "active")


def _line(key: ApiKey, today: int, requests: int) -> KeyLine:
    limits = getattr(key, "limits", None)
    day_limit = limits.tokens_per_day if limits else None
    return KeyLine(key, key_state(key), _words(limits) if limits else [], day_limit, today, requests)


def key_state(key: ApiKey) -> str:
    """active, expired or revoked."""
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= timezone.now() else "active"


def _words(limits: KeyLimits) -> list[str]:
    """What a key may do, a few words for each limit."""
    numbers = [
        (_("%s requests a minute"), limits.requests_per_minute),
        (_("%s tokens a minute"), limits.tokens_per_minute),
        (_("%s tokens a day"), limits.tokens_per_day),
        (_("%s at once"), limits.concurrent),
    ]
    words = [sentence % f"{number:,}" for sentence, number in numbers if number is not None]
    return [*words, _("only %s") % ", ".join(limits.only_models)] if limits.only_models else words


@require_http_methods(["GET", "HEAD", "POST"])
@role_required(OPERATOR)
def key_edit(request: SignedIn, pk: int) -> HttpResponse:
    """What a key may do, and until when."""
    key = get_object_or_404(visible_keys(request.user).select_related("owner"), pk=pk)
    if key.revoked_at:
        raise Problem(_("%s is revoked, for good.") % key.name, _("Make a new key with the limits you want."))
    form = KeyForm(request.POST if request.method == "POST" else None, key)
    if request.method == "POST" and form.is_valid():
        form.keep(key)
        messages.success(request, _("%s is changed. It is kept to at once.") % form.cleaned_data["name"])
        return go(request, "keys")
    return render(request, "key.html", {"key": key, "form": form}, status=409 if form.is_bound else 200)


@require_POST
@role_required(OPERATOR)
def key_revoke(request: SignedIn, pk: int) -> HttpResponse:
    key = get_object_or_404(visible_keys(request.user), pk=pk)
    gateway_keys.revoke(key)
    messages.success(request, _("%(name)s is revoked. Requests with it are refused.") % {"name": key.name})
    return go(request, "keys")
