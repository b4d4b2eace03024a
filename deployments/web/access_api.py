"""The REST API of keys for the gateway, and of what was used with them."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from django.db.models import QuerySet
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Field, Path, Query, Router, Schema
from ninja.responses import Status

from controlplane.api import FAILURES, Line, Listed, Number, Window, checked, listed, needs
from controlplane.roles import OPERATOR, SignedIn
from deployments.gateway import keys
from deployments.models import ApiKey, KeyLimits
from deployments.web import usage_views
from deployments.web.key_forms import KeyForm
from deployments.web.key_views import key_state, visible_keys

router = Router()


class KeyOut(Schema):
    """A key, without its value: that was shown once."""

    id: int
    name: str
    prefix: str
    owner: str
    state: Literal["active", "expired", "revoked"]
    controls: bool = Field(description="may also use this API, with its owner's role")
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    tokens_per_day: int | None
    concurrent: int | None
    only_models: list[str]


class KeySettings(Schema):
    """A key's name, last day and limits; what is null or empty does not limit."""

    name: Line
    expires: date | None = Field(None, description="the last day on which it may be used")
    controls: bool = False
    requests_per_minute: int | None = Field(None, ge=1, le=2_000_000_000)
    tokens_per_minute: int | None = Field(None, ge=1, le=2_000_000_000)
    tokens_per_day: int | None = Field(None, ge=1, le=2_000_000_000)
    concurrent: int | None = Field(None, ge=1, le=2_000_000_000)
    only_models: list[Line] = Field(default_factory=list, max_length=200)


class KeyMade(KeyOut):
    key: str = Field(description="the key itself: shown now and never again")


class UsageLine(Schema):
    """What was used, summed over whatever has this name in common."""

    name: str
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float | None = Field(description="mean time to the first token of what was streamed")


class UsageQuery(Schema):
    days: Literal[7, 30, 90, 365] = 30
    by: Literal["day", "model", "key", "user"] = "day"
    model: Line = ""
    key: Line = ""
    user: Line = ""


def _key(key: ApiKey) -> dict[str, Any]:
    names = ("id", "name", "prefix", "controls", "created_at", "expires_at", "last_used_at")
    limits = getattr(key, "limits", None) or KeyLimits()
    told = {name: getattr(key, name) for name in names} | {name: getattr(limits, name) for name in KeyForm.LIMITS}
    return told | {"owner": key.owner.get_username(), "state": key_state(key)}


def _keys(request: HttpRequest) -> QuerySet[ApiKey]:
    return visible_keys(request.user).select_related("owner", "limits")


@router.get("/keys", response={200: Listed[KeyOut], **FAILURES}, tags=["keys"])
def list_keys(request: HttpRequest, window: Query[Window]) -> dict[str, Any]:
    """Your own keys, newest first; an admin sees everybody's."""
    return listed(_keys(request), window, lambda key: KeyOut(**_key(key)))


@router.post("/keys", response={201: KeyMade, **FAILURES}, tags=["keys"])
def make_key(request: HttpRequest, settings: KeySettings) -> Status[KeyMade]:
    """A key of your own. Its value is in this answer and nowhere else."""
    user = needs(request, OPERATOR).user
    form = KeyForm(settings.dict())
    checked(form)
    key, plain = keys.create(user, form.cleaned_data["name"], form.expires_at)
    form.keep(key)
    return Status(201, KeyMade(**_key(_keys(request).get(pk=key.pk)), key=plain))


@router.get("/keys/{id}", response={200: KeyOut, **FAILURES}, tags=["keys"])
def get_key(request: HttpRequest, id: Path[Number]) -> KeyOut:
    return KeyOut(**_key(get_object_or_404(_keys(request), pk=id)))


@router.put("/keys/{id}", response={200: KeyOut, **FAILURES}, tags=["keys"])
def change_key(request: HttpRequest, id: Path[Number], settings: KeySettings) -> KeyOut:
    """Give a key other limits. They are kept to at once."""
    needs(request, OPERATOR)
    key = get_object_or_404(_keys(request).filter(revoked_at=None), pk=id)
    form = KeyForm(settings.dict(), key)
    checked(form)
    form.keep(key)
    return KeyOut(**_key(_keys(request).get(pk=key.pk)))


@router.delete("/keys/{id}", response={204: None, **FAILURES}, tags=["keys"])
def revoke_key(request: HttpRequest, id: Path[Number]) -> Status[None]:
    """Revoke it, for good."""
    needs(request, OPERATOR)
    keys.revoke(get_object_or_404(_keys(request), pk=id))
    return Status(204, None)


@router.get("/usage", response={200: list[UsageLine], **FAILURES}, tags=["usage"])
def usage(request: SignedIn, query: Query[UsageQuery]) -> list[UsageLine]:
    """Your own use, a line for each day, model, key or user; an admin sees everybody's."""
    return [
        UsageLine(
            name=line.name, requests=line.requests, errors=line.errors, prompt_tokens=line.prompt_tokens,
            completion_tokens=line.completion_tokens, ttft_ms=line.ttft,
        )
        for line in usage_views.summed(request)
    ]
