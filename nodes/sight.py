"""Which nodes are out of sight, as watch last knew: whoever needs one is told at once, and nobody waits to find out."""

from __future__ import annotations

from collections.abc import Iterable

from django.utils.translation import gettext as _

from controlplane.problems import Problem
from nodes.models import Node
from nodes.states import NodeState


def away(nodes: Iterable[Node]) -> list[Node]:
    """Those that cannot be reached now."""
    return list(Node.objects.filter(pk__in=[node.pk for node in nodes], state=NodeState.UNREACHABLE))


def is_away(node: Node) -> bool:
    return bool(away([node]))


def check(nodes: Iterable[Node]) -> None:
    """Raise the `Problem` that names the nodes which cannot be reached, if there are any, with what SSH said."""
    gone = away(nodes)
    if gone:
        told = (node.reason.partition("\n")[0] for node in gone)
        plain = (_("%(node)s cannot be reached.") % {"node": node.name} for node in gone)
        raise Problem(
            " ".join(why or instead for why, instead in zip(told, plain, strict=True)),
            _("Bring it back, then start again. If it is gone for good, take it out of its cluster: a node that "
              "cannot be reached leaves at once."),
        )  # fmt: skip


def left(node: Node) -> str:
    """What is said of something that could not be ended."""
    return _("%(node)s cannot be reached; what runs there is ended as soon as it can be.") % {"node": node.name}
