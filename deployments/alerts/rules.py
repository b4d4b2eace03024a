"""When an alert begins and when it is over: five rules, one step of time. Pure; the clock is passed in.

Nothing flaps: a state must last (``hold``) before it is told, must be gone for a while (``clear``) before it is over,
and between the two thresholds of a figure nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Self

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _


class Kind(StrEnum):
    GPU_LOST = "gpu_lost"
    NODE_UNREACHABLE = "node_unreachable"
    DEPLOYMENT_FAILED = "deployment_failed"
    DISK_FULL = "disk_full"
    CACHE_FULL = "cache_full"


@dataclass(frozen=True)
class Rule:
    """``hold`` and ``clear`` are seconds, ``threshold`` percent; without one it is a matter of yes and no."""

    kind: Kind
    title: str | Promise
    sentence: str | Promise  # blanks: name, value
    hold: int
    clear: int
    threshold: int | None = None
    on: bool = True

    @property
    def gap(self) -> float:
        """How far below the threshold a figure must fall to be well again, in percent."""
        return 5.0

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """With what an admin chose."""
        chosen = {name: settings[name] for name in ("on", "hold", "threshold") if settings.get(name) is not None}
        if self.threshold is None:
            chosen.pop("threshold", None)
        return type(self)(**{**vars(self), **chosen})


RULES: Mapping[Kind, Rule] = {
    rule.kind: rule
    for rule in (
        Rule(Kind.GPU_LOST, _("A GPU is lost"), _("%(name)s shows %(value)s GPUs of those it had."), 30, 30),
        Rule(Kind.NODE_UNREACHABLE, _("A node is unreachable"), _("%(name)s cannot be reached."), 30, 30),
        Rule(Kind.DEPLOYMENT_FAILED, _("A deployment failed"), _("%(name)s failed: %(value)s"), 0, 10),
        Rule(Kind.DISK_FULL, _("A disk is nearly full"), _("The disk of %(name)s is %(value)s %% full."), 60, 60, 90),
        Rule(Kind.CACHE_FULL, _("A KV cache is full"), _("The KV cache of %(name)s is %(value)s %% full."), 300, 60,
             threshold=95),
    )
}


class Level(StrEnum):
    """How it is with one thing now. UNKNOWN: nothing is heard of it, or it is between the thresholds."""

    BAD = "bad"
    GOOD = "good"
    UNKNOWN = "unknown"


class Seen(NamedTuple):
    """One look at one thing: ``about`` is its subject ("node:3"), ``name`` and ``value`` are for the sentence."""

    kind: Kind
    about: str
    name: str
    level: Level
    value: str = ""


def of_figure(rule: Rule, percent: float | None) -> Level:
    """A figure against the rule's threshold."""
    if percent is None or rule.threshold is None:
        return Level.UNKNOWN
    if percent >= rule.threshold:
        return Level.BAD
    return Level.GOOD if percent < rule.threshold - rule.gap else Level.UNKNOWN


class Status(NamedTuple):
    """Of one rule and thing: whether it is an alert, and since when it has looked otherwise (None: it does not)."""

    firing: bool = False
    since: float | None = None


class Step(NamedTuple):
    """What a look leads to; ``change`` is True when the alert begins, False when it is over, None otherwise."""

    status: Status
    change: bool | None = None


def step(rule: Rule, status: Status, level: Level, now: float) -> Step:
    """The next status. What is not known interrupts a beginning or an end, it never makes one."""
    if not rule.on:
        return Step(Status(), False if status.firing else None)
    wanted = {Level.BAD: True, Level.GOOD: False}.get(level)
    if wanted is None or wanted == status.firing:
        return Step(Status(status.firing))
    since = now if status.since is None else status.since
    if now - since >= (rule.hold if wanted else rule.clear):
        return Step(Status(wanted), wanted)
    return Step(Status(status.firing, since))
