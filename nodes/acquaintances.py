"""What other nodes know of one that is removed: its name in /etc/hosts, its host key and the way to it in ~/.ssh.

Those in sight are made to forget it, before it is taken away itself; the others do when they are prepared again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from nodes import preparation, runs
from nodes.models import Node, Step
from nodes.recipes import Satisfied
from nodes.recipes import removal as recipes
from nodes.remote.command import Command
from nodes.runs import Planned, StepKind
from nodes.states import NodeState


@dataclass(frozen=True)
class Acquaintances:
    """Nodes that know one: those that can be asked to forget it, and those that cannot now."""

    in_sight: list[Node]
    away: list[Node]


def of(node: Node) -> Acquaintances:
    """Who knows the node, as far as was seen when they were looked at last."""
    knowing = _knowing(node, _blocks(node))
    away = [one for one in knowing if one.key_changed or one.state in (NodeState.UNREACHABLE, NodeState.REMOVING)]
    return Acquaintances([one for one in knowing if one not in away], away)


def trusting(node: Node) -> list[Node]:
    """Who signs in to the node only if it shows the host key that was pinned when they were prepared."""
    pinned = {pk: {"known_hosts": (blocks or {}).get("known_hosts", {})} for pk, blocks in _blocks(node).items()}
    return _knowing(node, pinned)


def _knowing(node: Node, blocks: dict[int, Any]) -> list[Node]:
    others = Node.objects.exclude(pk=node.pk).select_related("jump", "bastion").defer("facts_json", "jump__facts_json")
    return [one for one in others if recipes.knows(blocks.get(one.pk) or {}, node.name)]


def _blocks(node: Node) -> dict[int, Any]:
    """What each other node was seen to have of Quarterdeck's blocks."""
    return dict(Node.objects.exclude(pk=node.pk).values_list("pk", "facts_json__blocks"))


def stages(node: Node) -> list[list[Planned]]:
    """What makes those in sight forget the node."""
    found = of(node).in_sight
    return [[(kind, one) for one in found] for kind in ("forget-name", "forget-trust")] if found else []


def _gone(step: Step) -> str:
    """The name of the node that the step's run is about."""
    return Node.objects.values_list("name", flat=True).get(pk=step.run.about.partition(":")[2])


def _name(step: Step) -> Command | Satisfied:
    return _leaving(step.node) or preparation.by_root(
        step, recipes.name_elsewhere(preparation.gather(step.node), _gone(step)))


def _trust(step: Step) -> Command | Satisfied:
    return _leaving(step.node) or recipes.trust_elsewhere(preparation.gather(step.node), _gone(step))


def _leaving(node: Node) -> Satisfied | None:
    """One that is being removed too has nothing to forget: all of it goes, and with it jobs that others began there."""
    return Satisfied(_("it is being removed itself")) if node.state == NodeState.REMOVING else None


runs.register(
    StepKind("forget-name", gettext_lazy("Its name, taken from other nodes"), _name),
    StepKind("forget-trust", gettext_lazy("Its host key, taken from other nodes"), _trust),
)
