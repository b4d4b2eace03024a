"""Which flags the vLLM of a node accepts: asked once for each package set, in the background, and kept."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from celery import shared_task

from controlplane import streams
from controlplane.problems import Problem
from deployments.flags import PROGRAM, Accepted
from deployments.kept import AcceptedFlags
from nodes import preparation, tasks
from nodes.hosts import shared_host
from nodes.models import Node
from nodes.remote.command import python
from nodes.remote.host import ask

#: Seconds that importing vLLM may take there, and in which a node is not asked twice.
_PATIENCE, _PAUSE = 100, 120


def of(node: Node) -> Accepted | None:
    """What the node's vLLM accepts; None until it is known, and then a worker asks it. Never waits."""
    environment = node.facts.environment
    if not environment.verified:
        return None
    found = AcceptedFlags.objects.filter(fingerprint=environment.lock).first()
    if found is not None:
        return Accepted.from_json(found.answer)
    with suppress(streams.RedisError):
        if streams.client().set(f"asking-flags:{environment.lock}", 1, nx=True, ex=_PAUSE):
            tasks.send(ask_flags, node.pk)
    return None


@shared_task
def ask_flags(node_id: int) -> None:
    """Ask the node's vLLM for its flags and keep the answer. What goes wrong is asked again another time."""
    node = Node.objects.filter(pk=node_id).first()
    if node is None:
        return
    fingerprint = node.facts.environment.lock
    with suppress(Problem, ValueError, KeyError, TypeError, AttributeError):
        command = python(preparation.site(node).interpreter, PROGRAM, env={"VLLM_NO_USAGE_STATS": "1"})
        result = ask(shared_host(node), command, timeout=_PATIENCE)
        answer = answer_of(result.text)
        AcceptedFlags.objects.get_or_create(fingerprint=fingerprint, defaults={"answer": answer})


def answer_of(printed: str) -> dict[str, Any]:
    """What `PROGRAM` printed, after whatever vLLM said before. Raises ValueError, KeyError, … where it is no answer."""
    answer = json.loads(printed.strip().rpartition("\n")[2])
    Accepted.from_json(answer)
    return dict(answer)
