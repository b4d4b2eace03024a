"""The page of usage: who asked which model for how much, by day. Everybody sees their own, an admin everybody's."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django import forms
from django.contrib.auth.models import User
from django.db.models import F, Q, QuerySet, Sum
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_safe

from controlplane.forms import DeckForm
from controlplane.roles import ADMIN, SignedIn, has_role
from deployments.models import ApiKey, Usage

PAGES = "pages"  # the value of the key filter for what was asked in the playground
COUNTED = ("requests", "errors", "prompt_tokens", "completion_tokens", "ttft_count", "ttft_ms")
GROUPS = {
    "day": gettext_lazy("Day"),
    "model": gettext_lazy("Model"),
    "key": gettext_lazy("Key"),
    "user": gettext_lazy("User"),
}
DAYS = {
    7: gettext_lazy("7 days"),
    30: gettext_lazy("30 days"),
    90: gettext_lazy("90 days"),
    365: gettext_lazy("1 year"),
}


@dataclass(frozen=True)
class Total:
    """Sums over some of the usage, under the name of what they have in common."""

    name: str
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_count: int = 0
    ttft_ms: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def ttft(self) -> float | None:
        """The mean time to the first token of what was streamed, in milliseconds."""
        return self.ttft_ms / self.ttft_count if self.ttft_count else None


class Filters(DeckForm):
    """What is looked at. A value that is none of the choices counts as not given."""

    days = forms.TypedChoiceField(label=gettext_lazy("Time"), coerce=int, choices=list(DAYS.items()))
    model = forms.ChoiceField(label=gettext_lazy("Model"), required=False)
    key = forms.ChoiceField(label=gettext_lazy("Key"), required=False)
    user = forms.ChoiceField(label=gettext_lazy("User"), required=False)
    by = forms.ChoiceField(label=gettext_lazy("A line for each"), choices=list(GROUPS.items()), required=False)

    def __init__(self, request: SignedIn, seen: QuerySet[Usage]) -> None:
        super().__init__({"days": "30", "by": "day"} | request.GET.dict())
        models = seen.order_by("model").values_list("model", flat=True).distinct()
        names = Names(seen)
        self._offer("model", gettext_lazy("all models"), ((one, one) for one in models))
        self._offer("key", gettext_lazy("all keys"), [(PAGES, str(names.pages)), *names.keys.items()])
        self._offer("user", gettext_lazy("all users"), names.users.items())
        if not has_role(request.user, ADMIN):
            del self.fields["user"]
            self._choices("by", [(value, label) for value, label in GROUPS.items() if value != "user"])
        self.is_valid()

    def _offer(self, name: str, every: Any, choices: Iterable[tuple[Any, str]]) -> None:
        self._choices(name, [("", every), *((str(value), label) for value, label in choices)])

    def _choices(self, name: str, choices: list[Any]) -> None:
        self.fields[name].choices = choices  # type: ignore[attr-defined]

    def chosen(self, name: str, otherwise: Any = "") -> Any:
        return self.cleaned_data.get(name) or otherwise

    @property
    def first(self) -> date:
        return today() - timedelta(days=self.chosen("days", 30) - 1)

    def apply(self, seen: QuerySet[Usage]) -> QuerySet[Usage]:
        found = seen.filter(day__gte=self.first)
        if model := self.chosen("model"):
            found = found.filter(model=model)
        if key := self.chosen("key"):
            found = found.filter(key=None if key == PAGES else int(key))
        if user := self.chosen("user"):
            found = found.filter(user=int(user))
        return found


class Names:
    """What keys and users are called; rows outlive both."""

    pages = gettext_lazy("pages, without a key")

    def __init__(self, seen: QuerySet[Usage]) -> None:
        found = seen.order_by()
        key_ids = [pk for pk in found.values_list("key", flat=True).distinct() if pk is not None]
        known = ApiKey.objects.in_bulk(key_ids)
        self.keys = {pk: f"{known[pk].name} ({known[pk].prefix}…)" if pk in known else self._gone(pk) for pk in key_ids}
        user_ids = list(found.values_list("user", flat=True).distinct())
        users = User.objects.in_bulk(user_ids)
        self.users = {pk: users[pk].username if pk in users else self._gone(pk) for pk in user_ids}

    @staticmethod
    def _gone(pk: int) -> str:
        return _("deleted, number %d") % pk

    def key(self, pk: int | None) -> str:
        return str(self.pages) if pk is None else self.keys.get(pk) or self._gone(pk)

    def user(self, pk: int) -> str:
        return self.users.get(pk) or self._gone(pk)


def today() -> date:
    """The day that is counted now: UTC's."""
    return datetime.now(UTC).date()


def _seen(request: SignedIn) -> QuerySet[Usage]:
    mine = Q() if has_role(request.user, ADMIN) else Q(user=request.user)
    return Usage.objects.filter(mine)


@require_safe
def usage(request: SignedIn) -> HttpResponse:
    seen = _seen(request)
    filters = Filters(request, seen)
    found = filters.apply(seen)
    by = filters.chosen("by", "day")
    whole = found.order_by().aggregate(**_sums())
    page = {
        "filters": filters,
        "all": Total("", **{name: value or 0 for name, value in whole.items()}),
        "lines": totals(found, by, Names(found)),
        "by": GROUPS[by],
        "chart": series(found, filters.first),
        "query": request.GET.urlencode(),
        "any": seen.exists(),
    }
    return render(request, "usage.html", page)


def summed(request: SignedIn) -> list[Total]:
    """The page's lines under the filters in the address, days as ISO text."""
    seen = _seen(request)
    filters = Filters(request, seen)
    found = filters.apply(seen)
    return totals(found, filters.chosen("by", "day"), Names(found), day=str)


def _sums() -> dict[str, Sum]:
    return {name: Sum(name) for name in COUNTED}


def totals(
    found: QuerySet[Usage], by: str, names: Names, day: Callable[[Any], str] = date_format
) -> list[Total]:
    """One for each day, newest first; of others the one with the most tokens first."""
    say: dict[str, Callable[[Any], str]] = {"day": day, "model": str, "key": names.key, "user": names.user}
    order = "-day" if by == "day" else (F("prompt_tokens__sum") + F("completion_tokens__sum")).desc()
    grouped = found.order_by().values(by).annotate(*(Sum(name) for name in COUNTED)).order_by(order)
    return [Total(say[by](row[by]), **{name: row[f"{name}__sum"] for name in COUNTED}) for row in grouped]


def series(found: QuerySet[Usage], first: date) -> dict[str, list[Any]]:
    """Tokens of each day from ``first`` to today, also of those without any: days as ISO text."""
    sums = found.order_by().values_list("day").annotate(Sum("prompt_tokens"), Sum("completion_tokens"))
    by_day = {day: (prompt, completion) for day, prompt, completion in sums}
    days = [first + timedelta(days=n) for n in range((today() - first).days + 1)]
    return {
        "days": [day.isoformat() for day in days],
        "prompt": [by_day.get(day, (0, 0))[0] for day in days],
        "completion": [by_day.get(day, (0, 0))[1] for day in days],
    }


@require_safe
def usage_csv(request: SignedIn) -> HttpResponse:
    """The rows behind the page, not summed, under the same filters."""
    seen = _seen(request)
    found = Filters(request, seen).apply(seen).order_by("day", "user", "key", "model")
    names = Names(found)
    response = HttpResponse(content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="usage-{today()}.csv"'
    writer = csv.writer(response)
    writer.writerow(["day", "user", "key", "model", *COUNTED[:4], "estimated", "mean_ttft_ms"])
    for row in found.iterator():
        mean = round(row.ttft_ms / row.ttft_count, 1) if row.ttft_count else ""
        who = [_cell(text) for text in (names.user(row.user_id), names.key(row.key_id), row.model)]
        writer.writerow([row.day, *who, *(getattr(row, name) for name in COUNTED[:4]), row.estimated, mean])
    return response


def _cell(text: str) -> str:
    """A name that a spreadsheet would run as a formula is marked as text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
