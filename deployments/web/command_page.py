"""Exactly what runs on which host for a deployment, to read and to copy: the rollout's own commands, secrets masked."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import NamedTuple

from django.utils.translation import gettext as _

from controlplane.secrets import MASK, Secret
from deployments.models import Deployment, Replica
from deployments.rollout import placing, serving
from nodes import preparation
from nodes.clusters import steps as clusters_steps
from nodes.clusters.address import inner_address, members
from nodes.models import Cluster, Node
from nodes.recipes import ray
from nodes.remote.command import Command

#: Files of a job that are secrets as a whole.
_SECRET_FILES = frozenset({"ray.token"})
#: Servers and nodes that are written out; the others are alike.
MOST_SHOWN = 8


class Shown(NamedTuple):
    """One command: where and for what, as a script that can be copied, and the files it finds under ``$QD_JOB``."""

    host: str
    title: str
    text: str
    files: list[tuple[str, str]]


def would_be(draft: Deployment) -> list[Replica]:
    """The replicas that a start would make, none of them kept."""
    return list(_would_be(draft))


def _would_be(draft: Deployment) -> Iterator[Replica]:
    ports: dict[str, Iterator[int]] = {}
    for number, places in enumerate(placing.seats(draft.plan, draft.copies), 1):
        node = placing.node_of(draft, places)
        free = ports.setdefault(node.name, (port for port in placing.free_ports(node, draft, set()) if port))
        yield Replica(
            deployment=draft, number=number, node=node, port=next(free), placement=places, spec=placing.spec(draft))


def of_deployment(deployment: Deployment, replicas: list[Replica]) -> list[Shown]:
    """What runs for its servers, Ray first where they need it. Raises `Problem` where a node lacks an address."""
    by_ray = deployment.executor == Deployment.Executor.RAY
    nodes = _nodes(deployment.cluster)[:MOST_SHOWN] if by_ray else []
    return [*(_ray(node, deployment.cluster) for node in nodes), *map(_server, replicas[:MOST_SHOWN])]


def _nodes(cluster: Cluster) -> list[Node]:
    others = members(cluster) if cluster.pk else []
    return [cluster.head, *(node for node in others if node.pk != cluster.head_id)]


def _ray(node: Node, cluster: Cluster) -> Shown:
    site, ports, address = preparation.site(node), clusters_steps.plan_of(cluster), inner_address(node)
    token = Secret(MASK)
    if node.pk == cluster.head_id:
        command = ray.start_head(node.facts, site, ports, address, token, node.ray_resources)
        return _shown(node, _("Ray's head"), command)
    head = inner_address(cluster.head)
    command = ray.start_worker(node.facts, site, ports, address, token, head, node.ray_resources)
    return _shown(node, _("Ray, joining the head"), command)


def _server(replica: Replica) -> Shown:
    title = _("vLLM's server")
    if replica.deployment.copies > 1:
        title = _("vLLM's server, copy %(number)d") % {"number": replica.number}
    return _shown(replica.node, title, serving.command_of(replica))


def _shown(node: Node, title: str, command: Command) -> Shown:
    files = [
        (name, MASK if name in _SECRET_FILES else content.decode(errors="replace"))
        for name, content in command.files.items()
    ]
    return Shown(node.name, title, script_of(command), files)


def script_of(command: Command) -> str:
    """The command as its job's script has it, one argument a line, secrets masked."""
    lines = [f"export {name}={_word(value)}" for name, value in command.env.items()]
    words = [_word(word) for word in command.argv]
    # "sh -euc SCRIPT sh" stay together; what follows are the script's arguments.
    start = 4 if command.argv[:2] == ("sh", "-euc") else 1
    return "\n".join([*lines, " \\\n    ".join([" ".join(words[:start]), *words[start:]])])


def _word(text: str) -> str:
    return str(text) if isinstance(text, Secret) else shlex.quote(text)
