"""Servers on their way to become nodes: a batch that was typed together, and each of its candidates."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils import timezone

from controlplane.lifecycle import Lifecycle
from controlplane.secrets import NO_SECRET, Secret, seal, unseal
from nodes import states

#: Seconds for which a sign-in that was typed is good; what is not registered by then is forgotten.
PENDING_SECONDS = 600


@dataclass(frozen=True)
class SignIn:
    """How to sign in to all servers of a batch."""

    password: Secret = NO_SECRET
    private_key: Secret = NO_SECRET
    passphrase: Secret = NO_SECRET
    agent: bool = False
    root: str = "auto"
    sudo_password: Secret = NO_SECRET

    @property
    def fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def seal(self) -> str:
        """All of it, encrypted, to be kept until the host keys are approved."""
        plain = {key: value.reveal() if isinstance(value, Secret) else value for key, value in self.fields.items()}
        return seal(json.dumps(plain))

    @classmethod
    def unseal(cls, token: str) -> Self:
        """What was sealed, less than `PENDING_SECONDS` ago. Raises `Problem`."""
        plain: dict[str, Any] = json.loads(unseal(token, PENDING_SECONDS).reveal())
        for key in ("password", "private_key", "passphrase", "sudo_password"):
            plain[key] = Secret(plain[key])
        return cls(**plain)


class Batch(models.Model):
    """Servers that are registered together, with one sign-in. That is sealed, and wiped when it is not needed more."""

    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE)
    created_at = models.DateTimeField(default=timezone.now)
    sign_in = models.TextField(blank=True)  # sealed; empty once it is forgotten
    typed = models.JSONField(default=dict)  # the form's other fields, for changing it
    jump = models.ForeignKey("nodes.Node", null=True, on_delete=models.CASCADE, related_name="+")
    bastion = models.ForeignKey("nodes.Bastion", null=True, on_delete=models.CASCADE, related_name="+")
    labels = models.JSONField(default=list)

    class Meta:
        app_label = "nodes"

    def __str__(self) -> str:
        return f"batch {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("node-approve", args=[self.pk])

    @property
    def seconds_left(self) -> int:
        """For which its sign-in can still be used; 0 once it is forgotten."""
        age = (timezone.now() - self.created_at).total_seconds()
        return max(0, int(PENDING_SECONDS - age)) if self.sign_in else 0


class Candidate(Lifecycle):
    """One server of a batch: asked for its host key, approved, registered; or failed, with the reason."""

    TRANSITIONS = states.CANDIDATE_TRANSITIONS

    state = models.CharField(max_length=20, default=states.CandidateState.ASKING, db_index=True)
    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="candidates")
    typed = models.CharField(max_length=80, blank=True)  # the entry of the list, where it could not be read
    is_bastion = models.BooleanField(default=False)  # the jump host of the others: registered first
    name = models.CharField(max_length=63, blank=True)
    user = models.CharField(max_length=64, blank=True)
    address = models.CharField(max_length=255, blank=True)
    port = models.PositiveIntegerField(default=22)
    host_key = models.TextField(blank=True)  # as it showed it; pinned once approved
    node = models.ForeignKey("nodes.Node", null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        app_label = "nodes"
        ordering = ["-is_bastion", "pk"]

    def __str__(self) -> str:
        return self.name or self.typed
