"""What the plan predicted beside what vLLM measured while it started. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from django.utils.functional import Promise
from django.utils.translation import gettext as _

Text = str | Promise
_GIB = 1 << 30


class Compared(NamedTuple):
    """One figure: as predicted, as measured ("" until it is), and by how many percent it is more or less."""

    label: Text
    predicted: str
    measured: str
    percent: float | None

    @property
    def difference(self) -> str:
        return "" if self.percent is None else f"{self.percent:+.1f} %"

    @property
    def is_far(self) -> bool:
        """Whether the prediction was off by more than a tenth."""
        return self.percent is not None and abs(self.percent) > 10


def compared(plan: Mapping[str, Any], measured: Mapping[str, Any]) -> list[Compared]:
    """The figures of a kept plan beside those that the start of one server measured; none without a plan.

    vLLM prints the weights of its fullest rank and the cache of its poorest one.
    """
    first = [place for place in plan.get("placement", ()) if place.get("replica", 0) == 0]
    if not first:
        return []
    weights = max(place["weights_bytes"] for place in first) / _GIB
    cache = min(place["kv_bytes"] for place in first) / _GIB
    rows = (
        (_("Weights on the fullest GPU"), weights, "weights_gib", "{:.2f} GiB"),
        (_("KV cache on the poorest GPU"), cache, "kv_gib", "{:.2f} GiB"),
        (_("Tokens in the KV cache"), plan.get("kv_tokens", 0), "kv_tokens", "{:,.0f}"),
        (_("Full-length requests at once"), plan.get("max_concurrency", 0), "max_concurrency", "{:.1f}"),
    )
    return [_row(label, float(value), measured.get(name), unit) for label, value, name, unit in rows]


class Worker(NamedTuple):
    """What one rank was to hold, and what it says it does; where it runs by the plan."""

    rank: int
    place: str
    figures: tuple[Compared, Compared]  # weights, KV cache


def each(plan: Mapping[str, Any], measured: Mapping[str, Any]) -> list[Worker]:
    """The first copy's ranks, where there are several and at least one has said something."""
    first = [place for place in plan.get("placement", ()) if place.get("replica", 0) == 0]
    said = {int(place["rank"]): _said(measured, int(place["rank"])) for place in first}
    if len(first) < 2 or not any(said.values()):
        return []
    return [_worker(place, said[int(place["rank"])]) for place in sorted(first, key=lambda place: int(place["rank"]))]


def _said(measured: Mapping[str, Any], rank: int) -> Mapping[str, float]:
    """What a rank said of itself; nothing where it is not known which process that is."""
    host, pid = measured.get("workers", {}).get(str(rank), ("?", 0))
    return dict(measured.get("each", {}).get(f"{host}/{pid}", {}))


def _worker(place: Mapping[str, Any], said: Mapping[str, float]) -> Worker:
    where = place["host"] if place.get("gpu") is None else f"{place['host']}, GPU {place['gpu']}"
    weights, cache = place["weights_bytes"] / _GIB, place["kv_bytes"] / _GIB
    return Worker(
        int(place["rank"]), where,
        (_row(_("Weights"), weights, said.get("weights_gib"), "{:.2f} GiB"),
         _row(_("KV cache"), cache, said.get("kv_gib"), "{:.2f} GiB")))


def _row(label: Text, predicted: float, measured: float | None, unit: str) -> Compared:
    if measured is None:
        return Compared(label, unit.format(predicted), "", None)
    percent = 100 * (measured - predicted) / predicted if predicted else None
    return Compared(label, unit.format(predicted), unit.format(measured), percent)
