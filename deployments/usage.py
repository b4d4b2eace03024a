"""What callers used and may use: rows that the gateway writes in batches, and the limits of keys."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class Usage(models.Model):
    """What one key, or the pages of one user (``key`` empty), asked of one model on one day (UTC).

    The rows outlive the key, the user and the deployment: they are the record of what was used.
    """

    day = models.DateField(db_index=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.DO_NOTHING, db_constraint=False, related_name="usage"
    )
    key = models.ForeignKey(
        "deployments.ApiKey",
        null=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="usage",
    )
    model = models.CharField(max_length=63)  # the name it was served under
    requests = models.BigIntegerField(default=0)
    errors = models.BigIntegerField(
        default=0
    )  # of these, answered with a status of 400 or more, or broken off
    prompt_tokens = models.BigIntegerField(default=0)
    completion_tokens = models.BigIntegerField(default=0)
    estimated = models.BigIntegerField(
        default=0
    )  # requests given up by the client: tokens counted by their events
    ttft_count = models.BigIntegerField(default=0)  # streams that gave a first token
    ttft_ms = models.BigIntegerField(default=0)  # the sum of their times to it, in milliseconds

    class Meta:
        app_label = "deployments"
        ordering = ["-day", "model"]
        constraints = [
            models.UniqueConstraint(
                fields=["day", "user", "key", "model"], name="one_usage_row_per_key_and_day"
            ),
            models.UniqueConstraint(
                fields=["day", "user", "model"],
                condition=models.Q(key=None),
                name="one_usage_row_per_user_and_day",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} {self.day}"


class KeyLimits(models.Model):
    """What a key may do; a field that is empty does not limit it."""

    key = models.OneToOneField(
        "deployments.ApiKey", primary_key=True, on_delete=models.CASCADE, related_name="limits"
    )
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_day = models.PositiveIntegerField(
        null=True, blank=True
    )  # prompt and completion; days are UTC's
    concurrent = models.PositiveIntegerField(null=True, blank=True)  # requests at once
    only_models = models.JSONField(default=list, blank=True)  # names it may ask; none: all

    class Meta:
        app_label = "deployments"

    def __str__(self) -> str:
        return f"limits of key {self.key_id}"
