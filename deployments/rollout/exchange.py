"""A deployment's servers are replaced, by those of a new revision or by fresh ones, without a gap where there is room.

New ones ready → routes switched → the old ones drained, in bounded time → stopped. Where the GPUs do not hold both,
one after another, or all old ones first: then there is a gap, and `forecast` says so before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from deployments import mending
from deployments.gateway import draining, routes
from deployments.models import Deployment, Replica
from deployments.rollout import placing
from deployments.rollout import stories as rollout
from deployments.rollout.replacing import Room, Seat, Way, way
from deployments.rollout.serving import replica_of
from deployments.rollout.steps import DEFAULT_SHARE
from deployments.states import COMING_BACK, REPLICA_AT_REST, SERVING, DeploymentState, ReplicaState
from nodes import ending, runs, sight
from nodes.facts import Facts
from nodes.models import Node, Run, Step
from nodes.recipes import Satisfied
from nodes.runs import Done, StepKind, Story, Waiting
from nodes.states import FINISHED, JOB_ACTIVE

#: How long the streams of an old server may go on.
DRAIN_TIME = timedelta(minutes=5)
_MIB = 2**20


def forecast(deployment: Deployment) -> Way:
    """How the deployment's servers would be replaced now, by its present plan. Reads what is known of the nodes."""
    old = list(_standing(deployment))
    new = [_seats(deployment, placing.node_of(deployment, places), places) for places in placing.given(deployment)]
    olds = [_seats(deployment, one.node, one.placement) for one in old]
    return way(olds, new, _room(deployment), by_ray=deployment.executor == Deployment.Executor.RAY)


def _standing(deployment: Deployment) -> Iterator[Replica]:
    """Replicas whose servers are to be replaced."""
    gone = (*REPLICA_AT_REST, ReplicaState.STOPPING)
    return iter(deployment.replicas.exclude(state__in=gone).select_related("node", "server"))


def _seats(deployment: Deployment, node: Node, places: Sequence[dict[str, Any]]) -> list[Seat]:
    """What a copy uses; where the plan does not say, one GPU of its node, or its memory."""
    share = float(placing.spec(deployment)["options"].get("gpu-memory-utilization", DEFAULT_SHARE))
    known = places or [{"host": node.name, "gpu": 0 if node.facts.gpus else None}]
    facts = {name: _facts(name) for name in {place["host"] for place in known}}
    return [Seat(place["host"], place["gpu"], _need(facts[place["host"]], place["gpu"], share)) for place in known]


def _need(facts: Facts, gpu: int | None, share: float) -> int:
    sizes = {one.index: one.memory_total_mib * _MIB for one in facts.gpus}
    return int(sizes.get(gpu, 0) * share) if gpu is not None else facts.memory_total // 4


def _facts(name: str) -> Facts:
    node = Node.objects.filter(name=name).first()
    return node.facts if node else Facts()


def _room(deployment: Deployment) -> dict[tuple[str, int | None], Room]:
    found: dict[tuple[str, int | None], Room] = {}
    for node in deployment.cluster.nodes.all():
        facts = node.facts
        for gpu in facts.gpus:
            free = gpu.memory_total_mib - gpu.memory_used_mib
            found[node.name, gpu.index] = Room(gpu.memory_total_mib * _MIB, free * _MIB)
        if not facts.gpus:
            found[node.name, None] = Room(facts.memory_total, facts.memory_available)
    return found


def replace(deployment: Deployment, by: User | None) -> Run:
    """Have new servers, made from what the deployment is now, take the place of those that run.

    Raises `Problem` where it does not run, or something else is being done to it.
    """
    if deployment.fresh().state not in SERVING:
        raise Problem(
            _("%(name)s does not run now, so there is nothing to replace.") % {"name": deployment.name}, _("Start it."))
    with transaction.atomic():
        for waiting in Run.objects.filter(about=deployment.subject, story="recover").exclude(state__in=FINISHED):
            runs.cancel(waiting, _("replaced on request"))
        chosen, old = forecast(deployment), list(_standing(deployment))
        new = placing.beside(deployment)
        sight.check(rollout.nodes_of(deployment, new))
        stages = _stages(deployment, chosen, old, new)
        named = {"old": [one.pk for one in old], "new": [one.pk for one in new], "way": str(chosen)}
        return runs.start("replace", deployment.subject, stages, by, **named)


def _stages(deployment: Deployment, chosen: Way, old: list[Replica], new: list[Replica]) -> runs.Stages:
    if chosen is Way.BESIDE:
        return [*_up(deployment, new), *_down(old)]
    if chosen is Way.AT_ONCE:
        return [*_down(old), *_up(deployment, new)]
    pairs = zip(old, new, strict=True)
    return [stage for gone, come in pairs for stage in (*_down([gone]), *_up(deployment, [come]))]


def _up(deployment: Deployment, new: list[Replica]) -> list[list[runs.Planned]]:
    return [*rollout.start_stages(deployment, new), [("switch", one.node, one.subject) for one in new]]


def _down(old: list[Replica]) -> list[list[runs.Planned]]:
    return [[(kind, one.node, one.subject) for one in old] for kind in ("drain", "stop-server")]


# --- steps -------------------------------------------------------------------------------------------------------


def _switch(step: Step) -> Done:
    """From here on requests go to the new server too."""
    replica = replica_of(step)
    replica.move(ReplicaState.READY, percent=100)
    mending.assess(replica.deployment)
    routes.poke()
    return Done(_("answers requests now"))


def _drain(step: Step) -> Satisfied | Waiting:
    """From here on no request goes to the old server; those that it has go on."""
    replica = replica_of(step)
    if not replica.move(ReplicaState.DRAINING, only_from=ReplicaState.READY):
        return Satisfied(_("it answers no requests"))
    mending.assess(replica.deployment)
    routes.poke()
    return Waiting(_("waiting for its answers to end"))


def _drained(step: Step) -> Done | Waiting:
    replica = replica_of(step)
    if replica.server_id is None or replica.server is None or replica.server.state not in JOB_ACTIVE:
        return Done()
    begun = step.started_at or timezone.now()
    if draining.drained(replica.server_id, timezone.now() - begun):
        return Done(_("all its answers ended"))
    if timezone.now() - begun > DRAIN_TIME:
        return Done(_("answers that still go on are cut off after %(minutes)d min")
                    % {"minutes": DRAIN_TIME.seconds // 60})
    return Waiting(_("waiting for its answers to end"))


def _replaced(run: Run, ok: bool, reason: str) -> None:
    deployment = Deployment.objects.get(pk=run.about.partition(":")[2])
    mine = Replica.objects.filter(deployment=deployment)
    if ok:
        _forget(list(mine.filter(pk__in=run.options["old"]).select_related("node", "server")))
    else:
        _give_up(list(mine.filter(pk__in=run.options["new"])), list(mine.filter(pk__in=run.options["old"])), reason)
    mending.assess(deployment)
    if not ok and not mine.filter(state__in=(ReplicaState.READY, *COMING_BACK)).exists():
        deployment.move(DeploymentState.FAILED, reason)
    transaction.on_commit(routes.poke)


def _forget(old: list[Replica]) -> None:
    """The old ones are gone; one on a node out of sight is ended once that is back, and kept until then."""
    for replica in old:
        if replica.server is not None and replica.server.state in JOB_ACTIVE:
            replica.move(ReplicaState.FAILED, sight.left(replica.node))
        else:
            replica.delete()


def _give_up(new: list[Replica], old: list[Replica], reason: str) -> None:
    """The new ones that do not answer are ended, and not tried again; then the old ones go on as far as they run.

    Where all of the new ones answer, an old one that could not be ended is, as soon as its node is back.
    """
    if all(replica.state == ReplicaState.READY for replica in new):
        for replica in old:
            replica.move(ReplicaState.FAILED, reason)
        return
    for replica in new:
        if replica.state != ReplicaState.READY and replica.move(ReplicaState.FAILED, reason):
            ending.end_soon(replica.server)
    for replica in old:
        if replica.state == ReplicaState.DRAINING and replica.server is not None and replica.server.state in JOB_ACTIVE:
            replica.move(ReplicaState.READY)
        elif replica.state in (ReplicaState.DRAINING, ReplicaState.STOPPING):
            replica.move(ReplicaState.STOPPED)


runs.register(
    StepKind("switch", gettext_lazy("Switch requests over"), _switch),
    StepKind("drain", gettext_lazy("Let answers end"), _drain, _drained),
)
runs.register_story(Story("replace", gettext_lazy("Replace"), _replaced))
