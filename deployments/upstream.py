"""How the control plane reaches a vLLM server: directly, or through its node's SSH connection."""

from __future__ import annotations

from deployments.models import Replica
from nodes.clusters.address import inner_address

__all__ = ["base_url", "inner_address"]


def base_url(replica: Replica) -> str:
    """Where requests for the replica's server go to from this process."""
    node = replica.node
    if not replica.tunnel:
        host = f"[{node.address}]" if ":" in node.address else node.address
        return f"http://{host}:{replica.port}"
    from nodes import tunnel  # and with it SSH, which a gateway that needs no tunnel does without

    bound = inner_address(node)
    there = "127.0.0.1" if bound == "0.0.0.0" else bound  # noqa: S104
    return f"http://127.0.0.1:{tunnel.local_port(node, there, replica.port)}"
