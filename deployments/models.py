"""Deployments: one model served by vLLM on a cluster. What is wanted and what was last seen."""

from __future__ import annotations

import secrets

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.lifecycle import Lifecycle
from controlplane.secrets import EncryptedField
from deployments import states
from deployments.alerts.models import Alert, AlertSettings, Delivery
from deployments.hub.models import HubAccess
from deployments.kept import AcceptedFlags, Revision
from deployments.names import Alias
from deployments.playground.models import Conversation, Message
from deployments.usage import KeyLimits, Usage
from nodes.models import Cluster, Job, Node

__all__ = [
    "AcceptedFlags", "Alert", "AlertSettings", "Alias", "ApiKey", "Conversation", "Delivery", "Deployment", "HubAccess",
    "KeyLimits", "Message", "Replica", "Revision", "Usage",
]  # fmt: skip


def make_key() -> str:
    return secrets.token_urlsafe(32)


class Deployment(Lifecycle):
    """One model served by vLLM on a cluster: desired state, plan, endpoint.

    draft → rolling out → ready | failed; ready → stopping → stopped; stopped and failed can roll out again. Its
    servers are its replicas: as long as some of them answer it is degraded, when none is left it has failed.
    """

    TRANSITIONS = states.DEPLOYMENT_TRANSITIONS

    class Executor(models.TextChoices):
        """How a server's workers are started."""

        RAY = "ray", gettext_lazy("Ray, on one host or several")
        MP = "mp", gettext_lazy("processes of one host")

    DEMO = "demo"  # the value of ``model`` that means the small model from PyPI

    state = models.CharField(max_length=20, default=states.DeploymentState.DRAFT, db_index=True)
    name = models.CharField(max_length=63, unique=True)  # also the served model name
    model = models.CharField(max_length=1024)  # an absolute path on the nodes, or DEMO
    cluster = models.ForeignKey(Cluster, on_delete=models.PROTECT, related_name="deployments")
    executor = models.CharField(max_length=3, choices=Executor, default=Executor.RAY)
    copies = models.PositiveSmallIntegerField(default=1)  # replicas that are wanted
    plan = models.JSONField(default=dict, blank=True)  # as `deployments.plan` makes it: layout, placement, flags, …
    revision = models.PositiveIntegerField(default=1)  # of options and plan; replicas know which they were started from
    port = models.PositiveIntegerField()  # of the first replica on a node; further ones get the next free ports
    options = models.JSONField(default=dict, blank=True)  # vLLM's own flag names → values
    api_key = EncryptedField(default=make_key)  # the gateway alone knows it
    restarted_at = models.DateTimeField(null=True, blank=True)  # when a server of it was last started by itself
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("deployment", args=[self.name])

    @property
    def replica(self) -> Replica | None:
        """The replica that is meant where only one is spoken of: the newest revision's first."""
        return min(self.replicas.all(), key=lambda one: (-one.revision, one.number), default=None)


class Replica(Lifecycle):
    """One vLLM server of a deployment. In service while it is ready.

    waiting → rolling out → ready; ready → waiting when its server died, ready → draining → stopping → stopped when a
    newer one took its place.
    """

    TRANSITIONS = states.REPLICA_TRANSITIONS

    state = models.CharField(max_length=20, default=states.ReplicaState.WAITING, db_index=True)
    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="replicas")
    number = models.PositiveSmallIntegerField()  # from 1 on
    revision = models.PositiveIntegerField(default=1)  # of the deployment, that it was started from
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="replicas")  # where the server itself runs
    port = models.PositiveIntegerField()
    spec = models.JSONField(default=dict, blank=True)  # what it is started from: see `deployments.rollout.placing.spec`
    placement = models.JSONField(default=list, blank=True)  # [{"host": "te1", "gpu": 0}, …]; empty: Ray chooses
    server = models.ForeignKey(Job, null=True, blank=True, on_delete=models.SET_NULL, related_name="serves")
    tunnel = models.BooleanField(default=False)  # the server answers only through the node's SSH connection
    phase = models.CharField(max_length=40, blank=True)  # of the start, as read from the log
    percent = models.PositiveSmallIntegerField(default=0)  # of the start, 0 to 100
    measured = models.JSONField(default=dict, blank=True)  # read back from vLLM's log: kv_tokens, weights_gib, …
    failures = models.PositiveSmallIntegerField(default=0)  # one after another; makes the delay grow
    restarts = models.PositiveIntegerField(default=0)  # since a person started it
    restart_at = models.DateTimeField(null=True, blank=True)  # while it waits: not before then

    class Meta:
        ordering = ["number"]
        constraints = [models.UniqueConstraint(fields=["deployment", "number"], name="one_replica_per_number")]

    def __str__(self) -> str:
        return _("Copy %(number)d") % {"number": self.number}

    @property
    def in_service(self) -> bool:
        return self.state == states.ReplicaState.READY

    @property
    def gpus(self) -> list[int]:
        """The GPUs of its own node that it was given; empty where Ray chooses them."""
        own = [place for place in self.placement if place.get("host") == self.node.name]
        return sorted(place["gpu"] for place in own if place.get("gpu") is not None)


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
