"""Where each hub is reached from this installation, and with which token."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from controlplane.secrets import NO_SECRET, EncryptedField
from deployments.hub.place import Access
from deployments.hub.source import Hub


class HubAccess(models.Model):
    """One row a hub, made when an admin sets a mirror or a token; without one the defaults of the settings hold."""

    hub = models.CharField(max_length=2, unique=True, choices=[(hub.value, hub.label) for hub in Hub])
    endpoint = models.CharField(max_length=300, blank=True)  # empty: the default
    token = EncryptedField(blank=True, default="")

    class Meta:
        app_label = "deployments"

    def __str__(self) -> str:
        return Hub(self.hub).label


def default_endpoint(hub: Hub) -> str:
    """The hub's own address, or the mirror that the installation's environment names."""
    return {Hub.HUGGING_FACE: settings.HF_ENDPOINT, Hub.MODELSCOPE: settings.MODELSCOPE_ENDPOINT}[hub].rstrip("/")


def access(hub: Hub) -> Access:
    """How the hub is asked now."""
    found = HubAccess.objects.filter(hub=hub).first()
    if found is None:
        return Access(default_endpoint(hub), NO_SECRET)
    return Access(found.endpoint or default_endpoint(hub), found.token)
