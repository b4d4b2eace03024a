"""How the control plane reaches a deployment's vLLM server: directly, or through the head node's SSH connection."""

from __future__ import annotations

from deployments.models import Deployment
from nodes import tunnel
from nodes.clusters_address import inner_address

__all__ = ["base_url", "inner_address"]


def base_url(deployment: Deployment) -> str:
    """Where requests for the deployment go to from this process."""
    node = deployment.cluster.head
    if not deployment.tunnel:
        host = f"[{node.address}]" if ":" in node.address else node.address
        return f"http://{host}:{deployment.port}"
    bound = inner_address(node)
    there = "127.0.0.1" if bound == "0.0.0.0" else bound  # noqa: S104
    return f"http://127.0.0.1:{tunnel.local_port(node, there, deployment.port)}"
