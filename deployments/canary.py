"""A prompt of one token now and then: whether a server that looks well generates. Cheap, and left out under traffic.

`/health` says no more than that the server's own process runs. What counts against a server is only what it did not do
while it could be reached: a connection that fails says nothing about it.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, cast

import httpx
from celery import shared_task
from django.dispatch import receiver
from django.utils.translation import gettext as _

from controlplane import streams
from controlplane.problems import Problem
from deployments import engine, mending
from deployments.models import Replica
from deployments.states import ReplicaState
from nodes import preparation, signals, tasks
from nodes.models import Node
from nodes.states import NodeState

#: Seconds between two looks at a replica; the second where something may be wrong with it or its node.
EVERY, SOON = 30, 5
#: So many prompts in a row must fail before the engine is taken for dead.
MOST_FAILURES = 3
#: Seconds that one prompt may take. A server that is busy may take longer, and is seen to generate meanwhile.
PATIENCE = 15.0
_GENERATED = re.compile(r"^vllm:generation_tokens_total(?:{[^}]*})? (\S+)", re.MULTILINE)
_WEEK = 7 * 86400


class Found(Enum):
    """What a look at a server showed."""

    WORKS = "works"
    MUTE = "mute"  # it was reached, and generated nothing
    OUT_OF_SIGHT = "out of sight"


@receiver(signals.tick)
def look_after(sender: object, **_kwargs: Any) -> None:
    """Have due replicas looked at by a worker."""
    states = (ReplicaState.READY, ReplicaState.UNREACHABLE)
    away = set(Node.objects.filter(state=NodeState.UNREACHABLE).values_list("name", flat=True))
    for replica in Replica.objects.filter(state__in=states, server__isnull=False).select_related("node"):
        doubt = replica.state == ReplicaState.UNREACHABLE or away & mending.hosts(replica)
        pause = SOON if doubt or streams.client().exists(_failures(replica)) else EVERY
        if streams.client().set(f"canary:{replica.pk}", 1, nx=True, ex=pause):
            tasks.send(look_at, replica.pk)


@shared_task
def look_at(replica_id: int) -> None:
    """Look at one replica and draw the conclusion."""
    replica = Replica.objects.select_related("deployment", "node", "server").filter(pk=replica_id).first()
    if replica is not None:
        conclude(replica, look(replica))


def look(replica: Replica) -> Found:
    """Whether the server generates: seen by its counter of tokens, else by a prompt of one token."""
    before = generated(replica)
    if before is not None and before > _last(replica):
        _remember(replica, before)
        return Found.WORKS
    try:
        answer = engine.prompt(replica, 1, PATIENCE)
    except httpx.ReadTimeout:  # it was connected to, and did not answer
        return _meanwhile(replica, before)
    except httpx.ConnectError:
        return Found.OUT_OF_SIGHT if _listens(replica) else Found.MUTE
    except httpx.HTTPError:
        return Found.OUT_OF_SIGHT
    if answer.status_code >= 500:  # also of one that refuses what it has no room for
        return _meanwhile(replica, before)
    if before is not None:
        _remember(replica, before + 1)  # the prompt's own token is nobody's traffic
    return Found.WORKS


def _meanwhile(replica: Replica, before: float | None) -> Found:
    """Whether it generated for others while it did not for us: then it is busy."""
    after = generated(replica)
    return Found.WORKS if after is not None and before is not None and after > before else Found.MUTE


def _listens(replica: Replica) -> bool:
    """Whether the server has its port open, as its own node says; also when that does not say."""
    try:
        return replica.tunnel or replica.port in preparation.gather(replica.node).listening
    except Problem:
        return True


def conclude(replica: Replica, found: Found) -> None:
    """What a look means for the replica. Only several mute answers in a row, its nodes in sight, end its server."""
    lost = mending.missing(replica)
    if found is Found.WORKS:
        streams.client().delete(_failures(replica))
        if replica.state == ReplicaState.UNREACHABLE and replica.move(ReplicaState.READY):
            mending.assess(replica.deployment)
    elif lost and replica.state == ReplicaState.READY:
        away = _("%(node)s cannot be reached.") % {"node": ", ".join(map(str, lost))}
        if replica.move(ReplicaState.UNREACHABLE, away, only_from=ReplicaState.READY):
            mending.assess(replica.deployment)
    elif found is Found.MUTE and not lost and streams.count(_failures(replica), 1, 20 * EVERY) >= MOST_FAILURES:
        streams.client().delete(_failures(replica))
        why = _("The server answers, but its engine generates nothing any more.")
        mending.ended(replica, why)


def generated(replica: Replica) -> float | None:
    """Tokens that the server has generated since it started; None where it does not say."""
    try:
        answer = engine.ask(replica, "GET", "/metrics", timeout=3)
    except httpx.HTTPError:
        return None
    found = _GENERATED.findall(answer.text) if answer.status_code == 200 else []
    return sum(map(float, found)) if found else None


def _failures(replica: Replica) -> str:
    return f"canary:failures:{replica.server_id}"


def _last(replica: Replica) -> float:
    return float(cast(bytes | None, streams.client().get(f"canary:tokens:{replica.server_id}")) or 0)


def _remember(replica: Replica, tokens: float) -> None:
    streams.client().set(f"canary:tokens:{replica.server_id}", tokens, ex=_WEEK)
