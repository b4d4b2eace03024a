"""Where a model name leads: served name → replicas, as the database had it a moment ago."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import redis
from django.db import transaction
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from controlplane import streams
from controlplane.secrets import Secret
from deployments import models
from deployments.gateway.client import Origin
from deployments.gateway.errors import ApiError, Text
from deployments.models import Deployment
from deployments.states import SERVING, DeploymentState
from deployments.upstream import base_url

log = logging.getLogger(__name__)

CHANNEL = "quarterdeck:gateway"  # says "look again"; carries nothing

#: Why a model is not served, and after how many seconds it may be worth trying again.
NOT_SERVED: Mapping[str, tuple[Text, int]] = {
    DeploymentState.DRAFT: (
        _("The model “{name}” is not running: its deployment was never started. Start it on its page."),
        60,
    ),
    DeploymentState.ROLLING_OUT: (
        _("The model “{name}” is starting. Try again in a moment; its page shows how far it is."),
        10,
    ),
    DeploymentState.STOPPING: (
        _("The model “{name}” is being stopped. Start its deployment again on its page."),
        30,
    ),
    DeploymentState.STOPPED: (
        _("The model “{name}” is stopped. Start its deployment again on its page."),
        60,
    ),
    DeploymentState.FAILED: (
        _("The model “{name}” is not running: its deployment failed. Its page says why."),
        60,
    ),
}


@dataclass(eq=False)
class Replica:
    """One model server. ``in_flight`` counts the requests that it is answering for this gateway."""

    origin: Origin
    api_key: Secret
    in_flight: int = 0


@dataclass(frozen=True)
class Route:
    """A model name and the servers behind it; none while the deployment does not serve."""

    name: str
    state: str
    created: int = 0  # Unix time, for the list of models
    replicas: tuple[Replica, ...] = field(default=(), compare=False)

    @property
    def serves(self) -> bool:
        return bool(self.replicas)


Routes = Mapping[str, Route]


def load(known: Routes) -> dict[str, Route]:
    """All routes from the database. Replicas that ``known`` has stay the same objects, counts included."""
    servers = (replica for route in known.values() for replica in route.replicas)
    kept = {(server.origin, server.api_key): server for server in servers}
    routes = {}
    for deployment in Deployment.objects.prefetch_related("replicas__node"):
        in_service = [one for one in deployment.replicas.all() if one.in_service and deployment.state in SERVING]
        fresh = [_replica(one, deployment.api_key) for one in in_service]
        replicas = tuple(kept.get((one.origin, one.api_key), one) for one in fresh)
        created = int(deployment.created_at.timestamp())
        routes[deployment.name] = Route(deployment.name, deployment.state, created, replicas)
    return routes


def _replica(server: models.Replica, api_key: Secret) -> Replica:
    address = urlsplit(base_url(server))
    return Replica(Origin(address.hostname or "", address.port or 80), api_key)


def find(routes: Routes, name: str) -> Route:
    """The route of a served model. Raises `ApiError`: 404 naming what exists, 503 with a next step."""
    route = routes.get(name)
    if route is None:
        raise ApiError(404, "model_not_found", _unknown(name, routes), param="model")
    if not route.serves:
        sentence, retry_after = NOT_SERVED.get(route.state, NOT_SERVED[DeploymentState.STOPPED])
        message = format_lazy(sentence, name=name)
        raise ApiError(503, "model_not_running", message, retry_after=retry_after)
    return route


def _unknown(name: str, routes: Routes) -> Text:
    shown = name if len(name) <= 100 else name[:100] + "…"
    served = sorted(route.name for route in routes.values() if route.serves)
    if not served:
        nothing = _("There is no model “{name}”, and no model is running. Start a deployment first.")
        return format_lazy(nothing, name=shown)
    names = ", ".join(served[:50]) + (" …" if len(served) > 50 else "")
    others = _("There is no model “{name}”. The models that are running: {names}.")
    return format_lazy(others, name=shown, names=names)


def least_busy(route: Route, tried: list[Replica]) -> Replica | None:
    """The replica with the least in flight among those not tried yet."""
    left = [replica for replica in route.replicas if replica not in tried]
    return min(left, key=lambda replica: replica.in_flight, default=None)


def poke() -> None:
    """Tell every gateway that keys or deployments changed, once the transaction at hand is committed.

    Never fails: without Redis it is logged, and the gateways see the change within a few seconds.
    """
    transaction.on_commit(_publish)


def _publish() -> None:
    try:
        streams.client().publish(CHANNEL, b"")
    except redis.RedisError as error:
        log.warning("The gateway was not told of a change (%s); it will see it within seconds.", error)
