"""What is kept of specifications: every revision of a deployment, and which flags a package set's vLLM accepts."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils import timezone


class Revision(models.Model):
    """One version of a deployment's whole specification. Never changed: going back makes a new one like the old."""

    deployment = models.ForeignKey("deployments.Deployment", on_delete=models.CASCADE, related_name="revisions")
    number = models.PositiveIntegerField()  # from 1 on
    spec = models.JSONField()  # as `Spec.to_dict` has it
    note = models.CharField(max_length=200, blank=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        app_label = "deployments"
        ordering = ["-number"]
        constraints = [models.UniqueConstraint(fields=["deployment", "number"], name="one_revision_per_number")]

    def __str__(self) -> str:
        return f"{self.deployment_id} #{self.number}"


class AcceptedFlags(models.Model):
    """What one package set's vLLM said when it was asked for its flags; nodes with the same set share the row."""

    fingerprint = models.CharField(max_length=80, unique=True)  # of the package set, as the node's facts have it
    answer = models.JSONField()  # as `flags.PROGRAM` prints it
    asked_at = models.DateTimeField(default=timezone.now)

    class Meta:
        app_label = "deployments"

    def __str__(self) -> str:
        return self.fingerprint
