"""Where a model name leads: served name → replicas, as the database had it a moment ago."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import redis
from django.db import transaction
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from controlplane import streams
from controlplane.secrets import Secret
from deployments import models
from deployments.gateway.client import Origin
from deployments.gateway.draining import Flights
from deployments.gateway.errors import ApiError, Text
from deployments.models import Alias, Deployment
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
    **dict.fromkeys(  # although the deployment serves: none of its servers does at this moment
        SERVING, (_("No server of the model “{name}” answers at the moment. Try again soon; its page says more."), 5)
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


@dataclass(frozen=True)
class Replica:
    """One model server. ``server`` names it in every process: its job; its address may be a tunnel's end here."""

    origin: Origin
    api_key: Secret
    server: str


@dataclass(frozen=True)
class Route:
    """A deployment and the servers behind it; none while it does not serve. Aliases lead to the same route."""

    name: str  # of the deployment: what its servers call the model
    state: str
    created: int = 0  # Unix time, for the list of models
    replicas: tuple[Replica, ...] = ()

    @property
    def serves(self) -> bool:
        return bool(self.replicas)


Routes = Mapping[str, Route]  # by every name that a request may give


def load() -> dict[str, Route]:
    """All routes from the database: by the names of deployments, and by aliases, which give way to those."""
    routes = {one.name: _route(one) for one in Deployment.objects.prefetch_related("replicas__node")}
    aliases = Alias.objects.values_list("name", "deployment__name")
    return {alias: routes[name] for alias, name in aliases if name in routes} | routes


def _route(deployment: Deployment) -> Route:
    in_service = [one for one in deployment.replicas.all() if one.in_service and deployment.state in SERVING]
    replicas = tuple(_replica(one, deployment.api_key) for one in in_service)
    return Route(deployment.name, deployment.state, int(deployment.created_at.timestamp()), replicas)


def _replica(server: models.Replica, api_key: Secret) -> Replica:
    address = urlsplit(base_url(server))
    origin = Origin(address.hostname or "", address.port or 80)
    return Replica(origin, api_key, str(server.server_id or server.subject))


def meant(routes: Routes, name: str) -> str:
    """The deployment that a name leads to; the name itself where nothing has it."""
    route = routes.get(name)
    return route.name if route else name


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
    served = sorted(known for known, route in routes.items() if route.serves)
    if not served:
        nothing = _("There is no model “{name}”, and no model is running. Start a deployment first.")
        return format_lazy(nothing, name=shown)
    names = ", ".join(served[:50]) + (" …" if len(served) > 50 else "")
    others = _("There is no model “{name}”. The models that are running: {names}.")
    return format_lazy(others, name=shown, names=names)


def least_busy(route: Route, tried: list[Replica], flights: Flights) -> Replica | None:
    """The replica with the least in flight among those not tried yet."""
    left = [replica for replica in route.replicas if replica not in tried]
    return min(left, key=lambda replica: flights[replica.server], default=None)


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
