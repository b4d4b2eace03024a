"""The longer history of what was measured, one row a minute or a quarter of an hour and source."""

from __future__ import annotations

from django.db import models


class Rollup(models.Model):
    """The mean of a source's samples over ``step`` seconds from ``at`` (Unix time) on. ``source``: "node:3"."""

    source = models.CharField(max_length=40)
    step = models.PositiveSmallIntegerField()
    at = models.PositiveBigIntegerField()
    data = models.JSONField()

    class Meta:
        app_label = "nodes"
        constraints = [models.UniqueConstraint(fields=["source", "step", "at"], name="one_rollup_per_step")]
        indexes = [models.Index(fields=["step", "at"])]

    def __str__(self) -> str:
        return f"{self.source} {self.at}+{self.step}"
