"""Deployments: one model served by vLLM on a cluster. What is wanted and what was last seen."""

from __future__ import annotations

import secrets

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils import timezone

from controlplane.lifecycle import Lifecycle
from controlplane.secrets import EncryptedField
from deployments import states
from deployments.hub.models import HubAccess
from deployments.names import Alias
from deployments.playground.models import Conversation, Message
from deployments.usage import KeyLimits, Usage
from nodes.models import Cluster, Job

__all__ = ["Alias", "ApiKey", "Conversation", "Deployment", "HubAccess", "KeyLimits", "Message", "Usage"]


def make_key() -> str:
    return secrets.token_urlsafe(32)


class Deployment(Lifecycle):
    """One model served by vLLM on a cluster: desired state, plan, endpoint.

    draft → rolling out → ready | failed; ready → stopping → stopped; stopped and failed can roll out again.
    """

    TRANSITIONS = states.DEPLOYMENT_TRANSITIONS

    DEMO = "demo"  # the value of ``model`` that means the small model from PyPI

    state = models.CharField(max_length=20, default=states.DeploymentState.DRAFT, db_index=True)
    name = models.CharField(max_length=63, unique=True)  # also the served model name
    model = models.CharField(max_length=1024)  # an absolute path on the nodes, or DEMO
    cluster = models.ForeignKey(Cluster, on_delete=models.PROTECT, related_name="deployments")
    port = models.PositiveIntegerField()  # of the vLLM server on the head node
    options = models.JSONField(default=dict, blank=True)  # vLLM's own flag names → values
    api_key = EncryptedField(default=make_key)  # the gateway alone knows it
    tunnel = models.BooleanField(default=False)  # the server answers only through the node's SSH connection
    server = models.ForeignKey(Job, null=True, blank=True, on_delete=models.SET_NULL, related_name="serves")
    phase = models.CharField(max_length=40, blank=True)  # of the start, as read from the log
    percent = models.PositiveSmallIntegerField(default=0)  # of the start, 0 to 100
    measured = models.JSONField(default=dict, blank=True)  # read back from vLLM's log: kv_tokens, weights_gib, …
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("deployment", args=[self.name])


class ApiKey(models.Model):
    """A key for the gateway: shown once, stored hashed."""

    name = models.CharField(max_length=80)
    prefix = models.CharField(max_length=12)  # what the page shows of it
    digest = models.CharField(max_length=64, unique=True)  # SHA-256, hex
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_keys")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    controls = models.BooleanField(default=False)  # may also use the REST API, with its owner's role

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"
