"""What is kept about nodes together: what was measured between them, and the key of a cluster's nodes."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from controlplane.secrets import EncryptedField


class Link(models.Model):
    """The way from one node to another, as it was measured last. What was not measured yet is None."""

    source = models.ForeignKey("nodes.Node", on_delete=models.CASCADE, related_name="links")
    target = models.ForeignKey("nodes.Node", on_delete=models.CASCADE, related_name="links_here")
    rtt_ms = models.FloatField(null=True, blank=True)
    gbps = models.FloatField(null=True, blank=True)  # what source sends to target
    ports = models.PositiveIntegerField(default=0)  # how many were tried
    closed = models.JSONField(default=list, blank=True)  # planned ports that could not be reached
    problem = models.TextField(blank=True)  # why nothing could be measured
    measured_at = models.DateTimeField(null=True, blank=True)
    trusted = models.BooleanField(null=True)  # whether source signs in to target without a question
    trust_problem = models.TextField(blank=True)
    trust_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["source__name", "target__name"]
        constraints = [models.UniqueConstraint(fields=["source", "target"], name="one_link_per_direction")]

    def __str__(self) -> str:
        return f"{self.source} → {self.target}"


class ClusterKey(models.Model):
    """The SSH key pair with which a cluster's nodes sign in to each other; made when it is first needed."""

    cluster = models.OneToOneField("nodes.Cluster", on_delete=models.CASCADE, related_name="key")
    private_key = EncryptedField()
    public_key = models.TextField()

    def __str__(self) -> str:
        return self.public_key
