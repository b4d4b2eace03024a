"""That a server's end gave its memory back: what its hosts used before is compared with what they use now."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

from django.utils.translation import gettext as _

from controlplane import streams
from controlplane.problems import Problem
from deployments.models import Replica
from deployments.states import REPLICA_AT_REST
from nodes import preparation
from nodes.facts import Facts
from nodes.models import Node
from nodes.states import NodeState
from nodes.telemetry import store
from nodes.telemetry.sample import INDEX, USED

_MIB, _GIB = 2**20, 2**30
#: The part of a server's weights that has to come back at least: others on the host may take memory meanwhile.
_LEAST = 0.5
#: Less than this is no news.
_NOTABLE = 64 * _MIB


def hosts_of(replica: Replica) -> list[Node]:
    """The nodes whose memory the replica uses, as far as they are in sight."""
    names = {place["host"] for place in replica.placement} or {replica.node.name}
    return list(Node.objects.filter(name__in=names).exclude(state=NodeState.UNREACHABLE))


def remember(replica: Replica) -> None:
    """Keep what the replica's hosts use now, for `proof` to compare with."""
    samples = store.newest_of_nodes([node.pk for node in hosts_of(replica)])
    used = {str(pk): _sampled(sample) for pk, sample in samples.items()}
    streams.client().set(_key(replica), json.dumps(used), ex=3600, nx=True)


def proof(replica: Replica, *, last_look: bool) -> str | None:
    """What came back, in words; None while it has not come back yet. Asks the hosts.

    With ``last_look`` that is a `Problem`, which names what holds the memory still.
    """
    before = json.loads(cast(bytes | None, streams.client().get(_key(replica))) or b"{}")
    told = [_host(replica, node, before.get(str(node.pk), {}), last_look=last_look) for node in hosts_of(replica)]
    if None in told:
        return None
    freed = ", ".join(filter(None, told))
    return _("no process is left; free again: %(memory)s") % {"memory": freed} if freed else _("no process is left")


def _host(replica: Replica, node: Node, before: dict[str, int], *, last_look: bool) -> str | None:
    facts = preparation.gather(node)
    gpus = _gpus(replica, node, facts)
    now = {f"gpu{gpu.index}": gpu.memory_used_mib * _MIB for gpu in facts.gpus if gpu.index in gpus}
    back = sum(max(0, before.get(name, used) - used) for name, used in now.items())
    if now and back < _expected(replica, node):
        if last_look and _alone(replica, node):
            raise Problem(*_held(node, facts, gpus))
        return "" if last_look else None
    if not facts.gpus:
        back = before.get("memory", 0) - (facts.memory_total - facts.memory_available)
    return _("%(size).1f GiB on %(node)s") % {"size": back / _GIB, "node": node.name} if back > _NOTABLE else ""


def _alone(replica: Replica, node: Node) -> bool:
    """Whether no other server of ours may have taken the memory meanwhile."""
    others = Replica.objects.exclude(pk=replica.pk).exclude(state__in=REPLICA_AT_REST)
    hosts = [{other.node.name, *(place["host"] for place in other.placement)} for other in others]
    return not any(node.name in names for names in hosts)


def _gpus(replica: Replica, node: Node, facts: Facts) -> set[int]:
    """The GPUs that the replica may have used there: Ray chooses among those of a host."""
    by_ray = replica.spec.get("executor", "ray") == "ray"
    return {gpu.index for gpu in facts.gpus} if by_ray or not replica.gpus else set(replica.gpus)


def _expected(replica: Replica, node: Node) -> float:
    """Bytes that must have come back there, by what the server itself said of its weights."""
    ranks = [place for place in replica.placement if place["host"] == node.name]
    return float(replica.measured.get("weights_gib", 0)) * _GIB * _LEAST * max(1, len(ranks))


def _held(node: Node, facts: Facts, gpus: Iterable[int]) -> tuple[str, str]:
    uuids = {gpu.uuid: gpu.index for gpu in facts.gpus if gpu.index in set(gpus)}
    holders = [process for process in facts.gpu_processes if process.gpu_uuid in uuids]
    named = "; ".join(
        _("GPU %(gpu)d: pid %(pid)d, %(size).1f GiB, %(command)s")
        % {"gpu": uuids[one.gpu_uuid], "pid": one.pid, "size": one.used_mib / 1024, "command": one.command[:80]}
        for one in holders)
    return (
        _("The server's processes ended, and memory on %(node)s is still held. %(holders)s")
        % {"node": node.name, "holders": named or _("No process that holds it can be seen.")},
        _("End what holds it, or restart the host if nothing does."),
    )


def _sampled(sample: dict[str, Any]) -> dict[str, int]:
    """Bytes used, by "gpu0" … and "memory"."""
    used = {f"gpu{int(gpu[INDEX])}": int(gpu[USED] or 0) * _MIB for gpu in sample["gpus"]}
    return {**used, "memory": int(sample["mem"][0] or 0)}


def _key(replica: Replica) -> str:
    return f"freed:{replica.server_id}"
