"""The tiles of one node, for its own page: nodes know nothing of deployments, templates may."""

from __future__ import annotations

from typing import Any

from django import template

from deployments.fleet import NODE_STATES, fleet, nodes
from deployments.models import Deployment
from nodes.models import Node

register = template.Library()


@register.simple_tag
def fleet_of(node: Node) -> dict[str, Any]:
    """``{% fleet_of node as fleet %}``: what static/js/fleet.js draws this node from."""
    deployments = Deployment.objects.prefetch_related("replicas")
    return fleet(nodes(Node.objects.filter(pk=node.pk)), deployments, everything=False)


@register.simple_tag
def states_of_nodes() -> tuple[str, ...]:
    return NODE_STATES
