"""Nodes together: what is between them is measured pair by pair, and they are made to know and trust each other.

A round is a stage of the run: each node is in one pair of it at most, so that no two measurements disturb each other
and N nodes take N - 1 rounds. The steps "hosts" and "trust" are about one node among those of its cluster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from nodes import locks, preparation, runs
from nodes.clusters.address import ANYWHERE, inner_address
from nodes.hosts import shared_host
from nodes.models import Cluster, ClusterKey, Link, Node, Run, Step
from nodes.recipes import Satisfied, hosts_file, trust
from nodes.recipes.blocks import block_name
from nodes.recipes.hosts_file import Named
from nodes.remote.command import Command, python
from nodes.remote.errors import HostProblem
from nodes.remote.host import Channel, ask
from nodes.remote.ssh import new_key
from nodes.runs import Done, Planned, StepKind, Story, Waiting

MEET = files("nodes.remote").joinpath("meet.py").read_text()
TRUST_CHECK = files("nodes.remote").joinpath("trust_check.py").read_text()
#: Of the block of ports that Ray and model servers use on a node.
PORTS = 400
T = TypeVar("T")


def start(nodes: Sequence[Node], by: User | None) -> Run:
    """Measure between these nodes, each pair both ways, and try who signs in to whom. Raises `Problem`."""
    if len(nodes) < 2:
        raise Problem(_("Between one node and itself there is nothing to measure."), _("Choose two nodes or more."))
    return runs.start("mesh", subject(nodes), stages(nodes), by)


def subject(nodes: Sequence[Node]) -> str:
    """What a run about this set of nodes is about: the same set has one unfinished run."""
    keys = "-".join(str(pk) for pk in sorted(node.pk for node in nodes))
    return "mesh:" + (keys if len(keys) < 70 else hashlib.sha256(keys.encode()).hexdigest()[:32])


def stages(nodes: Sequence[Node]) -> list[list[Planned]]:
    """The rounds of measurements, then who trusts whom; for whatever run wants to know."""
    measured: list[list[Planned]] = [[("mesh", one, other.subject) for one, other in pairs] for pairs in rounds(nodes)]
    return [*measured, [("trust-check", node) for node in nodes]]


def rounds(nodes: Sequence[T]) -> list[list[tuple[T, T]]]:
    """Every pair once, in rounds in which nobody is twice: one stays, the others move round the table."""
    table: list[T | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    found = []
    for _round in range(len(table) - 1):
        half = len(table) // 2
        facing = zip(table[:half], reversed(table[half:]), strict=True)
        found.append([(one, other) for one, other in facing if one is not None and other is not None])
        table = [table[0], table[-1], *table[1:-1]]
    return found


def address_among(node: Node) -> str:
    """The address that other nodes reach the node by: its cluster's, else the first of its own. Raises `Problem`."""
    found, own = inner_address(node), node.facts.addresses
    nowhere = found == ANYWHERE or (node.kind == Node.Kind.LOCAL and found.startswith("127."))
    return own[0] if nowhere and own else node.address if nowhere else found


# --- measuring --------------------------------------------------------------------------------------------------


class Visit:
    """The measuring program on one node, over one channel, while a pair is measured."""

    def __init__(self, node: Node) -> None:
        self.address = address_among(node)
        first = (node.cluster.port_base if node.cluster else 0) or settings.PORT_BASE
        program = python("python3", MEET, self.address, str(first), str(first + PORTS - 1))
        self._channel: Channel = shared_host(node).open(program)
        self._buffer = b""
        self._where = node.name

    def ask(self, **order: Any) -> None:
        self._channel.write(json.dumps(order).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        """The next line it says. Raises `Problem` where it ends instead."""
        while b"\n" not in self._buffer:
            data = self._channel.read(1 << 16)
            if not data or len(self._buffer) > 1 << 20:
                raise Problem(
                    _("The measuring program ended on %(node)s before it had measured.") % {"node": self._where},
                    _("Measure again. If it ends again, look whether python3 works there."))
            self._buffer += data
        line, _sep, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the program, and wait for its end: it holds the ports that the next pair needs."""
        with suppress(HostProblem):
            self.ask(end=True)
            while self._channel.read(1 << 16):
                pass
        self._channel.close()


def _measuring(step: Step) -> Waiting:
    return Waiting(_("measuring"))


def _mesh(step: Step) -> Done:
    """Measure one pair, at most some seconds. A node that cannot be reached is a finding, not a failure."""
    one, other = step.node, Node.objects.get(pk=step.about.partition(":")[2])
    try:
        found = _measured(one, other)
    except (HostProblem, Problem, ValueError, KeyError, TypeError) as error:
        told = error.told if isinstance(error, Problem) else str(error)
        _note(one, other, problem=told)
        _note(other, one, problem=told)
        return Done(_("not measured: %(why)s") % {"why": told})
    for (source, target), values in found.items():
        _note(source, target, **values)
    return Done(_summary(other, found[one, other]))


def _measured(one: Node, other: Node) -> dict[tuple[Node, Node], dict[str, Any]]:
    visits: list[Visit] = []
    try:
        for node in (one, other):
            visits.append(Visit(node))
        here, there = visits
        busy, busy_there = here.answer()["busy"], there.answer()["busy"]
        # Ports come first, both ways at once: what is measured then has the line to itself.
        here.ask(**{"try": there.address, "skip": busy_there})
        there.ask(**{"try": here.address, "skip": busy})
        out, back = here.answer(), there.answer()
        rates = _rates(here, there, out, back)
    finally:
        for visit in visits:
            visit.close()
    return {(one, other): _values({**rates, **out}, "gbps_out"), (other, one): _values({**rates, **back}, "gbps_in")}


def _rates(here: Visit, there: Visit, out: dict[str, Any], back: dict[str, Any]) -> dict[str, Any]:
    """Both directions over one port, from the side that reaches the other; nothing where neither does."""
    if out.get("open"):
        here.ask(measure=there.address, port=out["open"])
        return here.answer()
    if not back.get("open"):
        return {}
    there.ask(measure=here.address, port=back["open"])
    found = there.answer()
    return {**found, "gbps_out": found.get("gbps_in"), "gbps_in": found.get("gbps_out")}


def _values(found: dict[str, Any], rate: str) -> dict[str, Any]:
    """What a node said, as far as it can be: it may say anything."""
    if "error" in found:
        return {"problem": str(found["error"])[:300]}
    closed = [port for port in found["closed"] if isinstance(port, int)][:PORTS]
    rtt, gbps = (value if isinstance(value, int | float) else None for value in (found.get("rtt_ms"), found.get(rate)))
    return {"rtt_ms": rtt, "gbps": gbps, "closed": closed, "ports": int(found["tried"]), "problem": ""}


def _note(source: Node, target: Node, **values: Any) -> None:
    blank: dict[str, Any] = {"rtt_ms": None, "gbps": None, "closed": [], "ports": 0, "measured_at": timezone.now()}
    Link.objects.update_or_create(source=source, target=target, defaults={**blank, **values})


def _summary(other: Node, values: dict[str, Any]) -> str:
    if values.get("gbps") is None:
        names = {"node": other.name, "ports": values.get("ports", 0)}
        return _("%(node)s: no port of %(ports)d can be reached") % names
    return _("%(node)s: %(rtt).2f ms, %(gbps).1f Gbit/s") % {
        "node": other.name, "rtt": values["rtt_ms"], "gbps": values["gbps"]}


def network_gbps(nodes: Sequence[Node]) -> float | None:
    """The slowest measured way among these nodes, for the plan; None where not all of it was measured."""
    found = [link.gbps for link in links(nodes) if link.gbps is not None]
    return min(found) if found and len(found) == len(nodes) * (len(nodes) - 1) else None


def links(nodes: Sequence[Node]) -> list[Link]:
    among = [node.pk for node in nodes]
    return list(Link.objects.filter(Q(source__in=among) & Q(target__in=among)))


# --- trust and names --------------------------------------------------------------------------------------------


def _trust_check(step: Step) -> Done:
    """Sign in from this node to each other one of the run, as the article does with pdsh."""
    asked = Node.objects.filter(steps__run=step.run, steps__kind="trust-check").exclude(pk=step.node_id).distinct()
    peers = {address_among(node): node for node in asked}  # by address: a name that nobody knows is looked up for long
    answer = ask(shared_host(step.node), python("python3", TRUST_CHECK), json.dumps(list(peers)).encode(), 60)
    said: dict[str, str] = json.loads(answer.text.strip().splitlines()[-1])
    for address, peer in peers.items():
        why = str(said.get(address, "?"))[:300]
        values = {"trusted": not why, "trust_problem": why, "trust_at": timezone.now()}
        Link.objects.update_or_create(source=step.node, target=peer, defaults=values)
    good = sum(not said.get(address, "?") for address in peers)
    return Done(_("signs in to %(good)d of %(all)d") % {"good": good, "all": len(peers)})


def key_of(cluster: Cluster) -> ClusterKey:
    """The cluster's key pair, made when it is first asked for."""
    found = ClusterKey.objects.filter(cluster=cluster).first()
    if found is None:
        private, public = new_key()
        made = {"private_key": private, "public_key": f"{public} quarterdeck-{block_name(cluster.name)}"}
        found, _made = ClusterKey.objects.get_or_create(cluster=cluster, defaults=made)
        found.refresh_from_db()
    return found


def _trust(step: Step) -> Command | Satisfied:
    node = step.node
    if node.cluster is None:
        return Satisfied(_("left out: the node is in no cluster"))
    key = key_of(node.cluster)
    peers = [_peer(one) for one in locks.members_of(node) if one.host_key]
    wanted = trust.trust(node.facts, block_name(node.cluster.name), peers, key.public_key, key.private_key)
    if isinstance(wanted, Command):  # who signs in to whom is about to change
        Link.objects.filter(Q(source=node) | Q(target=node)).update(trusted=None, trust_problem="", trust_at=None)
    return wanted


def _peer(node: Node) -> trust.Peer:
    return trust.Peer(node.name, address_among(node), node.port, node.user, node.host_key)


def _hosts(step: Step) -> Command | Satisfied:
    node = step.node
    named = [Named(one.name, address_among(one), one.facts.hostname) for one in locks.members_of(node)]
    rename = node.name if preparation.options_of(node).hostname else ""
    name = block_name(node.cluster.name if node.cluster else node.name)
    return preparation.by_root(step, hosts_file.names(node.facts, name, named, rename))


runs.register(
    StepKind("mesh", gettext_lazy("Network"), _measuring, _mesh),
    StepKind("trust-check", gettext_lazy("Who trusts whom"), _trust_check),
    StepKind("hosts", gettext_lazy("Names in /etc/hosts"), _hosts),
    StepKind("trust", gettext_lazy("Trust among the nodes"), _trust),
)
runs.register_story(Story("mesh", gettext_lazy("Between nodes"), lambda run, ok, reason: None))


# --- shown ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One node's way to each of the others; None at its own place."""

    node: Node
    cells: Sequence[Link | None]


@dataclass(frozen=True)
class Matrix:
    """Everything measured between some nodes; for the template ``nodes/mesh.html``."""

    nodes: Sequence[Node]
    rows: Sequence[Row]
    slowest: float | None
    running: Run | None  # that measures these nodes now
    environments: Sequence[locks.Compared]

    @property
    def measured(self) -> bool:
        return any(cell is not None and cell.pk for row in self.rows for cell in row.cells)


def runs_about(subjects: Sequence[str]) -> QuerySet[Run]:
    """The runs that measured these sets of nodes."""
    return Run.objects.filter(about__in=subjects)


def matrix(nodes: Sequence[Node]) -> Matrix:
    """What is known between these nodes, in their order."""
    known = {(link.source_id, link.target_id): link for link in links(nodes)}
    rows = [Row(one, [_cell(known, one, other) for other in nodes]) for one in nodes]
    now = Run.objects.filter(about=subject(nodes), state__in=("waiting", "running")).first()
    return Matrix(nodes, rows, network_gbps(nodes), now, locks.compare(nodes))


def _cell(known: dict[tuple[int, int], Link], one: Node, other: Node) -> Link | None:
    if one.pk == other.pk:
        return None
    return known.get((one.pk, other.pk)) or Link(source=one, target=other)
