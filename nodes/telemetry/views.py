"""What charts and tiles ask for before they follow live: JSON, for whoever is signed in."""

from __future__ import annotations

from django.http import Http404, HttpRequest, JsonResponse
from django.views.decorators.http import require_safe

from nodes.telemetry import history
from nodes.telemetry.sample import Sample

#: Sources that are told of in one answer.
MOST = 64


@require_safe
def series(request: HttpRequest, kind: str, number: int) -> JsonResponse:
    """``/telemetry/node/3/?span=hour|day|month``"""
    span = request.GET.get("span", "hour")
    if span not in history.SPANS or kind not in history.streams:
        raise Http404
    found = history.Source(f"{kind}:{number}", history.streams[kind](number))
    return JsonResponse(history.of(found, span), json_dumps_params={"separators": (",", ":")})


@require_safe
def recent(request: HttpRequest) -> JsonResponse:
    """``/telemetry/?nodes=3,4``: of each node and GPU the load in each minute of the last hour, for small lines.

    ``{node: {"t": [minute, …], "cpu": […], "gpus": {index: […]}}}``
    """
    asked = [one for one in request.GET.get("nodes", "").split(",") if one.isdecimal() and len(one) < 10][:MOST]
    found = history.minutes(f"node:{one}" for one in asked)
    lines = {name.partition(":")[2]: _lines(samples) for name, samples in found.items()}
    return JsonResponse(lines, json_dumps_params={"separators": (",", ":")})


def _lines(samples: list[Sample]) -> dict[str, object]:
    gpus: dict[int, list[float | None]] = {}
    for at, sample in enumerate(samples):
        for row in sample["gpus"]:
            gpus.setdefault(int(row[0]), [None] * len(samples))[at] = row[3]
    return {"t": [int(sample["t"]) // 60 * 60 for sample in samples],
            "cpu": [sample["cpu"] for sample in samples], "gpus": gpus}
