"""How a node leaves."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from nodes import access
from nodes.hosts import close_shared, shared_host
from nodes.models import Node


def forget(node: Node, by: User | None) -> None:
    """Take the node out of Quarterdeck, and our key off it if it can be reached. Raises `Problem` while it is used."""
    if node.replicas.exists() or node.heads.filter(deployments__isnull=False).exists():
        raise Problem(
            _("%(node)s still has deployments.") % {"node": node.name}, _("Stop and delete them first."))
    if node.kind == Node.Kind.SSH:
        _take_key_away(node)
        close_shared(node)
    node.heads.all().delete()
    node.delete()


def _take_key_away(node: Node) -> None:
    try:
        access.remove_key(shared_host(node))
    except Problem:
        return  # a node that is gone cannot be asked; forgetting it is what was wanted
