"""How the control plane reaches a vLLM server: directly, or through its node's SSH connection."""

from __future__ import annotations

import socket

from deployments.models import Replica
from nodes import tunnel
from nodes.models import Node


def inner_address(node: Node) -> str:
    """The node's own address that the others, and the control plane, reach it by; servers bind to it.

    Where the node does not have the address it is reached by (NAT), all of its addresses: "0.0.0.0".
    """
    known = {address.split("/")[0] for address in node.facts.addresses} | {"127.0.0.1", "::1"}
    try:
        found = {info[4][0] for info in socket.getaddrinfo(node.address, None, type=socket.SOCK_STREAM)}
    except OSError:
        found = set()
    return str(next(iter(sorted(found & known)), "0.0.0.0"))  # noqa: S104


def base_url(replica: Replica) -> str:
    """Where requests for the replica's server go to from this process."""
    node = replica.node
    if not replica.tunnel:
        host = f"[{node.address}]" if ":" in node.address else node.address
        return f"http://{host}:{replica.port}"
    bound = inner_address(node)
    there = "127.0.0.1" if bound == "0.0.0.0" else bound  # noqa: S104
    return f"http://127.0.0.1:{tunnel.local_port(node, there, replica.port)}"
