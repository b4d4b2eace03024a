"""Compares how things are with the rules; notes what begins and what is over. May be called by anybody at any time.

What fires is in the database. How long something has looked otherwise is in Redis: losing that makes it wait again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import cast

from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from controlplane import streams
from deployments.alerts.models import Alert, AlertSettings, Delivery
from deployments.alerts.rules import Kind, Level, Seen, Status, of_figure, step
from deployments.models import Deployment, Replica
from deployments.states import DeploymentState, ReplicaState
from nodes.models import Node
from nodes.states import NodeState
from nodes.telemetry import store
from nodes.telemetry.sample import Sample

#: Samples that are older say nothing of now.
FRESH = 30.0
#: Alerts that are over are kept for so long.
KEPT = timedelta(days=90)
_WAITING = "alerts:waiting"
_UNREAD = ("spec", "measured", "deployment__api_key", "deployment__plan", "deployment__options")


def look(now: float | None = None) -> None:
    """One look at everything."""
    now = time.time() if now is None else now
    settings = AlertSettings.current()
    firing = {(alert.kind, alert.about): alert for alert in Alert.objects.filter(state="firing")}
    waiting = _waiting()
    left: dict[str, float] = {}
    for seen in observe(settings, now):
        alert = firing.pop((seen.kind, seen.about), None)
        key = f"{seen.kind} {seen.about}"
        before = Status(alert is not None, waiting.get(key))
        after, change = step(settings.rule(seen.kind), before, seen.level, now)
        if after.since is not None:
            left[key] = after.since
        if change:
            _begin(seen, settings)
        elif change is False and alert is not None:
            _end(alert, settings)
    for alert in firing.values():  # what it was about is gone
        _end(alert, settings)
    streams.client().set(_WAITING, json.dumps(left), ex=3600)


def _waiting() -> dict[str, float]:
    return cast(dict[str, float], json.loads(cast(bytes | None, streams.client().get(_WAITING)) or b"{}"))


def observe(settings: AlertSettings, now: float) -> Iterator[Seen]:
    """How everything is now, for every rule."""
    nodes = list(Node.objects.defer("facts_json").annotate(known_gpus=F("facts_json__gpus")))
    samples = store.newest_of_nodes([node.pk for node in nodes])
    fresh = {pk: sample for pk, sample in samples.items() if now - sample["t"] < FRESH}
    for node in nodes:
        yield from _of_node(node, fresh.get(node.pk), settings)
    for deployment in Deployment.objects.defer("api_key", "plan", "options"):
        failed = deployment.state == DeploymentState.FAILED
        reason = deployment.reason.partition("\n")[0][:300]
        yield Seen(Kind.DEPLOYMENT_FAILED, deployment.subject, deployment.name, _level(failed), reason)
    yield from _of_caches(settings, now)


def _level(bad: bool) -> Level:
    return Level.BAD if bad else Level.GOOD


def _of_node(node: Node, sample: Sample | None, settings: AlertSettings) -> Iterable[Seen]:
    yield Seen(Kind.NODE_UNREACHABLE, node.subject, node.name, _level(node.state == NodeState.UNREACHABLE))
    had = len(getattr(node, "known_gpus", None) or [])
    if had:
        has = len(sample["gpus"]) if sample else 0
        level = _level(has < had) if sample else Level.UNKNOWN
        yield Seen(Kind.GPU_LOST, node.subject, node.name, level, f"{has} / {had}")
    used, total = sample["disk"] if sample else (None, None)
    percent = 100 * used / total if used is not None and total else None
    shown = "" if percent is None else f"{percent:.0f}"
    yield Seen(Kind.DISK_FULL, node.subject, node.name, of_figure(settings.rule(Kind.DISK_FULL), percent), shown)


def _of_caches(settings: AlertSettings, now: float) -> Iterator[Seen]:
    said = store.others()
    rule = settings.rule(Kind.CACHE_FULL)
    for copy in Replica.objects.filter(state=ReplicaState.READY).select_related("deployment").defer(*_UNREAD):
        sample = said.get(f"r{copy.pk}", {"t": 0})
        kv = sample.get("kv") if now - sample["t"] < FRESH else None
        percent = None if kv is None else 100 * kv
        name = copy.deployment.name if copy.deployment.copies < 2 else f"{copy.deployment.name} #{copy.number}"
        shown = "" if percent is None else f"{percent:.0f}"
        yield Seen(Kind.CACHE_FULL, copy.subject, name, of_figure(rule, percent), shown)


def _begin(seen: Seen, settings: AlertSettings) -> None:
    try:
        with transaction.atomic():
            alert = Alert.objects.create(kind=seen.kind, about=seen.about, name=seen.name[:120], value=seen.value[:300])
            _tell(alert, Delivery.What.BEGAN, settings)
            transaction.on_commit(alert.poke)
    except IntegrityError:
        pass  # another worker saw it too


def _end(alert: Alert, settings: AlertSettings) -> None:
    with transaction.atomic():
        if alert.move("over", ended_at=timezone.now()):
            _tell(alert, Delivery.What.OVER, settings)


def _tell(alert: Alert, what: Delivery.What, settings: AlertSettings) -> None:
    for channel in channels(settings):
        Delivery.objects.create(alert=alert, channel=channel, what=what)


def channels(settings: AlertSettings) -> list[Delivery.Channel]:
    """Where messages go."""
    chosen = {Delivery.Channel.WEBHOOK: settings.webhook_url, Delivery.Channel.EMAIL: settings.addresses}
    return [channel for channel, there in chosen.items() if there]


def forget() -> None:
    """Remove what was over long ago."""
    Alert.objects.filter(state="over", ended_at__lt=timezone.now() - KEPT).delete()
    Delivery.objects.filter(alert=None, next_at=None, sent_at__lt=timezone.now() - KEPT).delete()
