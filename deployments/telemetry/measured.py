"""Tells `nodes.telemetry` and watch of what is measured of servers: a deployment together, and each replica."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from deployments.models import Deployment, Replica
from deployments.states import SERVING
from deployments.telemetry.sampler import Sampler
from nodes import watch
from nodes.telemetry import history, store


def _deployment(number: int) -> str:
    return store.other_key("e", number)


def _replica(number: int) -> str:
    return store.other_key("r", number)


def _sources() -> Iterable[history.Source]:
    serving = Deployment.objects.filter(state__in=SERVING).values_list("pk", flat=True)
    yield from (history.Source(f"deployment:{pk}", _deployment(pk)) for pk in serving)
    copies = Replica.objects.filter(deployment__state__in=SERVING).values_list("pk", flat=True)
    yield from (history.Source(f"replica:{pk}", _replica(pk)) for pk in copies)


def _sample_engines(stopping: threading.Event) -> None:
    Sampler().run(stopping)


history.streams |= {"deployment": _deployment, "replica": _replica}
history.sources.append(_sources)
watch.companions.append(_sample_engines)
