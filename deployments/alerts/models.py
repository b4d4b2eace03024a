"""Alerts that began, whom to tell, and what is still to be told."""

from __future__ import annotations

from datetime import timedelta

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from controlplane.lifecycle import Lifecycle
from controlplane.secrets import EncryptedField
from deployments.alerts.rules import RULES, Kind, Rule
from nodes.states import following


class Alert(Lifecycle):
    """Something that is wrong, until it is over: firing → over."""

    TRANSITIONS = following(firing="over")

    state = models.CharField(max_length=20, default="firing", db_index=True)
    kind = models.CharField(max_length=20)
    about = models.CharField(max_length=80)  # "node:3"
    name = models.CharField(max_length=120)
    value = models.CharField(max_length=300, blank=True)
    began_at = models.DateTimeField(default=timezone.now, db_index=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        app_label = "deployments"
        ordering = ["-began_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "about"], condition=models.Q(state="firing"), name="one_alert_at_a_time"
            )
        ]

    def __str__(self) -> str:
        """The sentence, in the language of whoever reads it."""
        return str(RULES[Kind(self.kind)].sentence) % {"name": self.name, "value": self.value}

    @property
    def lasted(self) -> timedelta | None:
        return self.ended_at - self.began_at if self.ended_at else None

    @property
    def title(self) -> str:
        return str(RULES[Kind(self.kind)].title)


class AlertSettings(models.Model):
    """Whom to tell and by which rules; one row."""

    webhook_url = EncryptedField(blank=True, default="")  # chat services put their key into the address
    webhook_secret = EncryptedField(blank=True, default="")  # signs what is sent
    emails = models.TextField(blank=True)  # separated by commas
    rules = models.JSONField(default=dict, blank=True)  # kind → {"on", "hold", "threshold"}

    class Meta:
        app_label = "deployments"

    def __str__(self) -> str:
        return "alert settings"

    @classmethod
    def current(cls) -> AlertSettings:
        found = cls.objects.first()
        return found if found is not None else cls()

    @property
    def addresses(self) -> list[str]:
        return [one.strip() for one in self.emails.split(",") if one.strip()]

    def rule(self, kind: Kind) -> Rule:
        return RULES[kind].changed(self.rules.get(kind, {}))


class Delivery(models.Model):
    """One message to one channel, tried until it arrived or `delivery.ATTEMPTS` times."""

    class Channel(models.TextChoices):
        WEBHOOK = "webhook", _("webhook")
        EMAIL = "email", _("e-mail")

    class What(models.TextChoices):
        BEGAN = "began", _("began")
        OVER = "over", _("over")
        TEST = "test", _("test")

    alert = models.ForeignKey(Alert, null=True, blank=True, on_delete=models.CASCADE, related_name="deliveries")
    channel = models.CharField(max_length=8, choices=Channel)
    what = models.CharField(max_length=8, choices=What)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(default=timezone.now, null=True, blank=True)  # None: not tried any more
    sent_at = models.DateTimeField(null=True, blank=True)
    error = models.CharField(max_length=300, blank=True)

    class Meta:
        app_label = "deployments"
        ordering = ["pk"]
        indexes = [models.Index(fields=["next_at"])]

    def __str__(self) -> str:
        return f"{self.channel} {self.what} {self.alert_id}"
