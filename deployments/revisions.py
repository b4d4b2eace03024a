"""Making, changing, cloning and restoring deployments by their specification: every change is kept as a revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from django.contrib.auth.models import User
from django.db import transaction
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments import aliases, planning
from deployments.kept import Revision
from deployments.models import Deployment
from deployments.planning import Planned, spec_of
from deployments.rollout import stories as rollout
from deployments.spec import Spec
from deployments.states import AT_REST
from nodes.clusters import stories as clusters
from nodes.models import Node


class Line(NamedTuple):
    """One difference between two revisions; None: it is not set there."""

    name: str
    old: Any
    new: Any


def create(spec: Spec, by: User | None, note: str = "") -> Deployment:
    """A new deployment in state draft, with its plan. Raises `Problem` for what cannot be."""
    place = planning.place_of(spec)
    planned = _possible(spec)
    head = place if isinstance(place, Node) else place.head
    with transaction.atomic():
        made = rollout.create(spec.name, spec.model, head, spec.port, dict(planned.looked.options), by)
        _write(made, spec, planned, by, note)
    return made


def change(deployment: Deployment, spec: Spec, by: User | None, note: str = "") -> bool:
    """Give the deployment another specification, as a new revision; False if it is the same as before.

    A deployment that runs goes on with the old one until it is replaced or started again. Raises `Problem`.
    """
    old = spec_of(deployment)
    if spec.name != deployment.name:
        raise Problem(_("A deployment keeps its name: requests use it."), _("Clone it under another name instead."))
    spec = replace(spec, port=spec.port or old.port)
    if spec == old:
        return False
    _check_move(deployment, old, spec)
    planned = _possible(spec, deployment)
    with transaction.atomic():
        if not deployment.revisions.exists():
            _keep(deployment, old, None, "")
        _write(deployment, spec, planned, by, note)
    deployment.poke()
    return True


def roll_back(deployment: Deployment, number: int, by: User | None) -> bool:
    """Make the specification of an earlier revision the newest. Raises `Problem`; False if it is what it is already."""
    return change(deployment, earlier(deployment, number), by, _("as revision %(number)d") % {"number": number})


def earlier(deployment: Deployment, number: int) -> Spec:
    """The specification that a revision of it has. Raises `Problem` where there is no such revision."""
    found = deployment.revisions.filter(number=number).first()
    if found is None:
        raise Problem(_("%(name)s has no revision %(number)d.") % {"name": deployment.name, "number": number})
    return Spec.from_dict(found.spec)


def clone(deployment: Deployment) -> Spec:
    """A specification like the deployment's under a name that is free, on a port of its own."""
    taken = aliases.all_names()
    names = (f"{deployment.name[:58]}-{number}" for number in range(2, len(taken) + 3))
    return replace(spec_of(deployment), name=next(name for name in names if name not in taken), port=None)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Line]:
    """What differs between two specifications, each of vLLM's options on a line of its own."""
    before, after = _flat(old), _flat(new)
    names = [*before, *(name for name in after if name not in before)]
    return [Line(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def _flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in spec.items() if name != "options"}
    return {**plain, **spec.get("options", {})}


def _possible(spec: Spec, besides: Deployment | None = None) -> Planned:
    """The plan for a specification. Raises `Problem` where it is impossible; a model that cannot be read may come."""
    planned = planning.plan_for(spec, besides)
    if planned.impossible:
        raise planned.impossible
    return planned


def _check_move(deployment: Deployment, old: Spec, new: Spec) -> None:
    """While servers run, they stay where they are."""
    head = _head(new)
    moved = (old.where, old.port) != (new.where, new.port)
    if moved and deployment.fresh().state not in AT_REST:
        raise Problem(
            _("%(name)s runs, and another place or port needs it stopped.") % {"name": deployment.name},
            _("Stop it first, or clone it to have both."),
        )
    others = Deployment.objects.filter(cluster__head=head).exclude(pk=deployment.pk)
    taken = next((other for other in others if other.port == new.port), None)
    if taken is not None:
        raise Problem(
            _("Port %(port)d belongs to the deployment %(name)s.") % {"port": new.port, "name": taken.name},
            _("Choose another port, or leave the field empty."),
        )


def _head(spec: Spec) -> Node:
    place = planning.place_of(spec)
    return place if isinstance(place, Node) else place.head


def _write(deployment: Deployment, spec: Spec, planned: Planned, by: User | None, note: str) -> None:
    """Bring the deployment's row to the specification and its plan, and keep both as a revision."""
    deployment.cluster = clusters.of_node(_head(spec))
    deployment.model, deployment.port = spec.model, spec.port or deployment.port
    deployment.options = dict(planned.looked.options)
    for name, value in planning.kept(planned, spec).items():
        setattr(deployment, name, value)
    deployment.revision = _keep(deployment, replace(spec, port=deployment.port), by, note)
    deployment.save(
        update_fields=["cluster", "model", "port", "options", "executor", "plan", "copies", "revision"])


def _keep(deployment: Deployment, spec: Spec, by: User | None, note: str) -> int:
    latest = deployment.revisions.first()
    number = latest.number + 1 if latest else 1
    Revision.objects.create(
        deployment=deployment, number=number, spec=spec.to_dict(), note=note[:200], created_by=by)
    return number


class Applied(NamedTuple):
    """What a specification of a file did: ``what`` is "created", "changed" or "unchanged"."""

    deployment: Deployment
    what: str
    lines: list[Line]


def check(spec: Spec) -> Planned:
    """The specification's plan. Raises the `Problem` that applying it would meet, as far as it can be known before."""
    found = Deployment.objects.filter(name=spec.name).first()
    planned = _possible(spec, found)
    if found is None:
        rollout.check_new(spec.name, _head(spec), spec.port)
    else:
        old = spec_of(found)
        _check_move(found, old, replace(spec, port=spec.port or old.port))
    return planned


def changes(deployment: Deployment, spec: Spec) -> list[Line]:
    """What the specification changes about the deployment."""
    old = spec_of(deployment)
    return difference(old.to_dict(), replace(spec, port=spec.port or old.port).to_dict())


def apply(spec: Spec, by: User | None, note: str) -> Applied:
    """Make the deployment of this name what the specification says: again is the same as once. Raises `Problem`."""
    found = Deployment.objects.filter(name=spec.name).first()
    if found is None:
        return Applied(create(spec, by, note), "created", [])
    old = spec_of(found)
    if not change(found, spec, by, note):
        return Applied(found, "unchanged", [])
    return Applied(found, "changed", difference(old.to_dict(), spec_of(found).to_dict()))
