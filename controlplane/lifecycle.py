"""States that change in one way only: `move` is a compare-and-set, an event row and a poke, or nothing at all.

A model that mixes in `Lifecycle` names its transitions (state → the states that may follow). ``move`` updates the row
only if its state still allows it; zero rows updated means that somebody else won, and the caller stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from django.db import models, transaction
from django.utils import timezone

#: Called with the moved object after commit; `controlplane.consumers` puts the websocket poke here.
listeners: list[Callable[[Lifecycle], None]] = []


class Event(models.Model):
    """One state change: outbox, history for the page and statistics at once."""

    subject = models.CharField(max_length=80)  # "node:3"
    old = models.CharField(max_length=20)
    new = models.CharField(max_length=20)
    reason = models.TextField(blank=True)
    at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        app_label = "controlplane"
        indexes = [models.Index(fields=["subject", "-at"])]

    def __str__(self) -> str:
        return f"{self.subject}: {self.old} → {self.new}"


class Lifecycle(models.Model):
    """A row with a state. Subclasses set ``TRANSITIONS`` and give ``state`` its default."""

    TRANSITIONS: ClassVar[Mapping[str, frozenset[str]]]

    state = models.CharField(max_length=20, db_index=True)
    state_since = models.DateTimeField(default=timezone.now)
    reason = models.TextField(blank=True)  # why it is in this state, in a sentence; empty when there is nothing to say

    class Meta:
        abstract = True

    @property
    def subject(self) -> str:
        """The name of this row in events, pokes and ``data-live`` attributes."""
        return f"{self._meta.model_name}:{self.pk}"

    def move(self, to: str, reason: str = "", *, only_from: str = "", **fields: Any) -> bool:
        """Change the state, if the row still is in one that allows it. True when this call made the change.

        ``fields`` are written in the same update; ``only_from`` narrows the states it may come from to one. The
        object in hand is brought up to date when it won.
        """
        allowed = [state for state, followers in self.TRANSITIONS.items() if to in followers]
        allowed = [state for state in allowed if only_from in ("", state)]
        values = {"state": to, "state_since": timezone.now(), "reason": reason, **fields}
        with transaction.atomic():
            row = type(self)._default_manager.filter(pk=self.pk, state__in=allowed)
            old = row.values_list("state", flat=True).first()
            if old is None or not row.filter(state=old).update(**values):
                return False
            Event.objects.create(subject=self.subject, old=old, new=to, reason=reason)
            for name, value in values.items():
                setattr(self, name, value)
            transaction.on_commit(self.poke)
        return True

    def poke(self) -> None:
        """Tell whoever looks at this row that it changed. May be lost; nothing may depend on it."""
        for listener in listeners:
            listener(self)

    def fresh(self) -> Self:
        """The row as the database has it now."""
        return type(self)._default_manager.get(pk=self.pk)
