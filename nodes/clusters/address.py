"""Which of its addresses a node goes by in its cluster: Ray, vLLM and the other nodes use that one."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from django.utils.translation import gettext as _

from controlplane.problems import Problem
from nodes.models import Cluster, Node

ANYWHERE = "0.0.0.0"  # noqa: S104


def inner_address(node: Node) -> str:
    """The node's own address that the others, and the control plane, reach it by; servers bind to it.

    It lies in the cluster's network where that names one; raises `Problem` where the node has none there. Otherwise
    it is the one the node is reached by, and where the node does not have that itself (NAT), all: "0.0.0.0".
    """
    network = node.cluster.network if node.cluster else ""
    return address_in(node, network) if network else _reached_by(node)


def _reached_by(node: Node) -> str:
    known = {address.split("/")[0] for address in node.facts.addresses} | {"127.0.0.1", "::1"}
    try:
        found = {info[4][0] for info in socket.getaddrinfo(node.address, None, type=socket.SOCK_STREAM)}
    except OSError:
        found = set()
    return str(next(iter(sorted(found & known)), ANYWHERE))


def address_in(node: Node, network: str) -> str:
    """The node's address in a network: a subnet ("10.0.0.0/24") or the name of an interface. Raises `Problem`."""
    subnet = as_subnet(network)
    for interface, address in _own(node):
        if (interface == network) if subnet is None else (ipaddress.ip_address(address) in subnet):
            return address
    what = _("%(node)s has no address in %(network)s.") if subnet else _("%(node)s has no interface %(network)s.")
    has = ", ".join(f"{address} ({interface})" for interface, address in _own(node) if interface != "lo")
    raise Problem(
        what % {"node": node.name, "network": network},
        _("Choose a network that every node of the cluster is in. This one has: %(has)s.") % {"has": has or "–"},
    )


def as_subnet(network: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The subnet that the text names; None if it is none, as the name of an interface is."""
    try:
        return ipaddress.ip_network(network, strict=False)
    except ValueError:
        return None


def _own(node: Node) -> Iterator[tuple[str, str]]:
    """Interface and address of everything the node has, IPv4 first; all of 127.0.0.0/8 is every host's own."""
    found = [(one.name, one.address) for one in node.facts.interfaces]
    try:
        loopback = ipaddress.ip_address(node.address).is_loopback
    except ValueError:
        loopback = False
    yield from sorted(found, key=lambda one: ":" in one[1])
    if loopback:
        yield "lo", node.address


def names_by_address() -> dict[str, str]:
    """Every address that a node is known by, with the node's name."""
    known = [(node.name, address) for node in Node.objects.all() for address in (*node.facts.addresses, node.address)]
    return {address.split("/")[0]: name for name, address in known}


def members(cluster: Cluster) -> list[Node]:
    """The nodes of a cluster, its head first."""
    others = [node for node in cluster.nodes.all() if node.pk != cluster.head_id]
    return [cluster.head, *others]


def shared_networks(nodes: list[Node]) -> list[str]:
    """What may stand for "network" with all these nodes: subnets of 24 or 64 bits and interfaces they share."""
    each = [{*_subnets(node), *(one.name for one in node.facts.interfaces if one.name != "lo")} for node in nodes]
    common = set.intersection(*each) if each else set()
    return sorted(common, key=lambda name: ("/" not in name, name))


def _subnets(node: Node) -> set[str]:
    found = (ipaddress.ip_address(one.address) for one in node.facts.interfaces)
    return {str(ipaddress.ip_network((one, 24 if one.version == 4 else 64), strict=False))
            for one in found if not one.is_loopback and not one.is_link_local}  # fmt: skip
