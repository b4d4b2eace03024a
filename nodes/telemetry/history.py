"""What was measured in the last hour (Redis), day and month (database), thinned for a chart; and how it gets there.

`roll_up` may be called at any time and by anybody: it goes on where the rows end, from streams that keep an hour, so a
process that was away for less loses nothing. Minutes are kept two days, quarters of an hour thirty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import Max, Min

from nodes.models import Node
from nodes.telemetry import store
from nodes.telemetry.models import Rollup
from nodes.telemetry.sample import Sample, mean, thinned

MINUTE, QUARTER, HOUR, DAY = 60, 900, 3600, 86_400
#: step → seconds for which its rows are kept
KEPT = {MINUTE: 2 * DAY, QUARTER: 30 * DAY}
#: Seconds in which the last samples of a minute may still arrive.
LATE = 5


class Span(NamedTuple):
    """How far a chart looks back, and how many seconds one of its points stands for."""

    seconds: int
    point: int


SPANS = {"hour": Span(HOUR, 5), "day": Span(DAY, 2 * MINUTE), "month": Span(30 * DAY, 2 * QUARTER)}


class Source(NamedTuple):
    """Something that is measured: its name in rows and addresses, and its stream."""

    name: str
    stream: str


def _nodes() -> Iterable[Source]:
    return [Source(f"node:{pk}", store.node_key(pk)) for pk in Node.objects.values_list("pk", flat=True)]


#: The kinds of sources → the stream of one, by its number; other packages add theirs.
streams: dict[str, Callable[[int], str]] = {"node": store.node_key}
#: Who knows what sources there are; other packages add theirs.
sources: list[Callable[[], Iterable[Source]]] = [_nodes]


def of(source: Source, span: str, now: float | None = None) -> dict[str, Any]:
    """The samples for a chart: ``{"step": seconds of a point, "samples": […]}``, oldest first, gaps left out."""
    now = time.time() if now is None else now
    length, point = SPANS[span]
    if span == "hour":
        found = store.between(source.stream, now - length)
    else:
        step = MINUTE if span == "day" else QUARTER
        rows = Rollup.objects.filter(source=source.name, step=step, at__gte=now - length).order_by("at")
        found = list(rows.values_list("data", flat=True))
    return {"step": point, "samples": thinned(found, point)}


def minutes(names: Iterable[str], now: float | None = None) -> dict[str, list[Sample]]:
    """The minutes of the last hour of several sources."""
    now = time.time() if now is None else now
    rows = Rollup.objects.filter(source__in=list(names), step=MINUTE, at__gte=now - HOUR).order_by("at")
    found: dict[str, list[Sample]] = {}
    for name, data in rows.values_list("source", "data"):
        found.setdefault(name, []).append(data)
    return found


def roll_up(now: float | None = None) -> None:
    """Bring the rows up to date and remove those that are too old."""
    now = time.time() if now is None else now
    known = [source for say in sources for source in say()]
    _roll_minutes(known, now)
    _roll_quarters(now)
    for step, kept in KEPT.items():
        Rollup.objects.filter(step=step, at__lt=int(now - kept)).delete()
    store.keep(source.stream for source in known)


def _roll_minutes(known: Iterable[Source], now: float) -> None:
    end = int(now - LATE) // MINUTE * MINUTE
    first = end - HOUR
    last = dict(
        Rollup.objects.filter(step=MINUTE, at__gte=first).values_list("source").annotate(Max("at")).order_by()
    )
    for source in known:
        begin = max(first, last.get(source.name, 0) + MINUTE)
        if begin < end:
            _keep(source.name, MINUTE, begin, end, store.between(source.stream, begin, end))


def _roll_quarters(now: float) -> None:
    end = int(now - LATE) // QUARTER * QUARTER
    last = Rollup.objects.filter(step=QUARTER).aggregate(at=Max("at"))["at"]
    oldest = Rollup.objects.filter(step=MINUTE).aggregate(at=Min("at"))["at"]
    if oldest is None:
        return
    begin = oldest // QUARTER * QUARTER if last is None else last + QUARTER
    if begin >= end:
        return
    rows = Rollup.objects.filter(step=MINUTE, at__gte=begin, at__lt=end).order_by("source", "at")
    with transaction.atomic():  # all sources or none: the next call goes on after the last row
        for name, group in groupby(rows.values_list("source", "data").iterator(), key=lambda row: row[0]):
            _keep(name, QUARTER, begin, end, [data for _name, data in group])


def _keep(name: str, step: int, begin: int, end: int, samples: list[Sample]) -> None:
    """Write one row for each step between ``begin`` and ``end``; one that is there stays."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(int(sample["t"]) // step * step, []).append(sample)
    means = {at: mean(group) for at, group in groups.items() if begin <= at < end}
    rows = [Rollup(source=name, step=step, at=at, data=data) for at, data in means.items()]
    Rollup.objects.bulk_create(rows, ignore_conflicts=True, batch_size=500)
