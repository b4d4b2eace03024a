"""Further names of deployments, for requests. `deployments.aliases` adds and removes them."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils import timezone

LONGEST = 120


class Alias(models.Model):
    """A name that leads to a deployment. No deployment is made with it while it does."""

    name = models.CharField(max_length=LONGEST, unique=True)
    deployment = models.ForeignKey("deployments.Deployment", on_delete=models.CASCADE, related_name="aliases")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        app_label = "deployments"
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
