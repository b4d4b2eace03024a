"""What all nodes of a cluster have in common: one Python, one set of packages. The first node's is the others' lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nodes.facts import Environment, Facts, Python
from nodes.models import Node
from nodes.recipes import Lock, python_env


def lock_for(node: Node) -> Lock | None:
    """What the node's environment has to be besides the preset; None where it is in no cluster of several nodes.

    The first node that is complete tells, the head before the others. While none is, a Python is chosen that all of
    them have, so that they can be prepared at the same time.
    """
    members = [one for one in members_of(node) if one.facts.engine == node.facts.engine]
    if len(members) < 2:
        return None
    first = next((one for one in members if _complete(one.facts)), None)
    if first is None:
        return Lock(_common_python(members), (), "", members[0].name)
    if first.pk == node.pk:
        return None
    found = first.facts.environment
    return Lock(found.python, found.distributions, found.fingerprint, first.name)


@dataclass(frozen=True)
class Compared:
    """A node's environment beside the first one's. ``same`` is None where one of the two is not known yet."""

    node: Node
    environment: Environment
    same: bool | None


def compare(nodes: Sequence[Node]) -> list[Compared]:
    """Whether these nodes have one and the same environment, each compared with the first complete one of its kind."""
    firsts: dict[str, str] = {}
    for node in nodes:
        if _complete(node.facts):
            firsts.setdefault(node.facts.engine, node.facts.environment.fingerprint)
    return [_compared(node, firsts.get(node.facts.engine, "")) for node in nodes]


def _compared(node: Node, first: str) -> Compared:
    found = node.facts.environment
    return Compared(node, found, found.fingerprint == first if found.fingerprint and first else None)


def members_of(node: Node) -> list[Node]:
    """The nodes of the node's cluster, the head first; only itself where it is in none."""
    if node.cluster is None:
        return [node]
    head = node.cluster.head_id
    return sorted(node.cluster.nodes.all(), key=lambda one: (one.pk != head, one.pk))


def _complete(facts: Facts) -> bool:
    found = facts.environment
    current = found.lock.partition("+")[0].removesuffix(" verified") == python_env.fingerprint(facts.engine)
    return found.verified and (current or found.kind == "existing") and bool(found.fingerprint)


def _common_python(members: list[Node]) -> str:
    """The head's own choice if the others have it too, else the newest that all have, else the head's."""
    own = members[0].facts.python
    has = [_usable(one.facts.pythons) for one in members if one.facts.hostname]
    common = set.intersection(*has) if has else set()
    if own in common or not common:
        return own
    return max(common, key=lambda version: tuple(map(int, version.split("."))))


def _usable(pythons: tuple[Python, ...]) -> set[str]:
    numbers = {one.version: tuple(map(int, one.version.split("."))) for one in pythons if one.has_venv}
    return {version for version, number in numbers.items() if (3, 11) <= number[:2] <= (3, 14)}
