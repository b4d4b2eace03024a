"""A specification that was saved becomes what runs, in one act; and what that act would do, told before it.

`revisions` keeps what is wanted, `rollout` and `exchange` bring it about: here is which of them is due.
"""

from __future__ import annotations

from typing import NamedTuple

from django.contrib.auth.models import User
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments import planning, revisions
from deployments.models import Deployment, Replica
from deployments.revisions import Line
from deployments.rollout import exchange
from deployments.rollout import stories as rollout
from deployments.rollout.replacing import Way
from deployments.spec import Spec
from deployments.states import AT_REST, REPLICA_AT_REST, SERVING
from nodes.models import Run


class Preview(NamedTuple):
    """What saving a specification would do: ``what`` as `revisions.Applied` has it.

    ``way``: how servers that run would be replaced; None where none would be. ``rests``: none runs, so that one would
    be started. ``problem``: why it cannot be saved.
    """

    name: str
    what: str = "unchanged"
    lines: tuple[Line, ...] = ()
    way: Way | None = None
    rests: bool = False
    problem: Problem | None = None


def outdated(deployment: Deployment) -> bool:
    """Whether servers run that were started from another specification than the newest.

    By their content: whoever changes something and goes back again has two revisions more and nothing to replace.
    """
    others = {one.revision for one in _running(deployment)} - {deployment.revision}
    if not others:
        return False
    wanted = planning.spec_of(deployment).to_dict()
    kept = dict(deployment.revisions.filter(number__in=others).values_list("number", "spec"))
    return any(kept.get(number) != wanted for number in others)


def _running(deployment: Deployment) -> list[Replica]:
    return [one for one in deployment.replicas.all() if one.state not in REPLICA_AT_REST]


def take(deployment: Deployment, by: User | None, *, start: bool = False) -> Run | None:
    """Have the newest specification run: servers of another one are replaced. None: nothing is due.

    With ``start`` a deployment that rests is rolled out. Raises `Problem` where that cannot be; what is saved stays.
    """
    state = deployment.fresh().state
    if state in AT_REST:
        return rollout.start(deployment, by) if start else None
    if not outdated(deployment):
        return None
    if state not in SERVING:
        raise Problem(
            _("%(name)s is %(state)s with its old settings now.")
            % {"name": deployment.name, "state": state.replace("_", " ")},
            _("The new ones are saved. Press Restart on its page once it is ready, or stop it and start it again."),
        )
    return exchange.replace(deployment.fresh(), by)


def preview(spec: Spec) -> Preview:
    """What saving the specification, and having it run, would do now. Touches nothing."""
    try:
        return _preview(spec)
    except Problem as problem:
        return Preview(spec.name, problem=problem)


def _preview(spec: Spec) -> Preview:
    found = Deployment.objects.filter(name=spec.name).first()
    planned = revisions.check(spec)
    if found is None:
        return Preview(spec.name, "created", rests=True)
    lines = tuple(revisions.changes(found, spec))
    due = found.state in SERVING and (bool(lines) or outdated(found))
    way = exchange.forecast(planning.draft_of(spec, planned, found)) if due else None
    return Preview(spec.name, "changed" if lines else "unchanged", lines, way, found.state in AT_REST)
