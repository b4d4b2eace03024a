"""The life of a cluster, as stories: made, formed, joined and left by nodes, dissolved, deleted.

What keeps it up in between is in `nodes.clusters.care`; what the steps do in `nodes.clusters.steps`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import cast

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from nodes import preparation, runs, sight, signals
from nodes.clusters.address import address_in, members
from nodes.clusters.room import foreign_leftovers
from nodes.clusters.steps import as_members, change, note_stopped, running
from nodes.models import Cluster, Node, Run, Step
from nodes.runs import Planned, Story
from nodes.states import FINISHED, ClusterState, NodeState

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
RESERVED = frozenset({"new"})
AT_REST = frozenset({ClusterState.STOPPED, ClusterState.FAILED})


def create(name: str, head: Node, others: Sequence[Node], network: str = "", port_base: int = 0) -> Cluster:
    """A new cluster of these nodes, not started. Raises `Problem` for a name taken or a node that is not free."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise Problem(
            _("%(name)r cannot be a cluster's name.") % {"name": name[:80]},
            _("Use letters, digits and hyphens, at most 63, beginning and ending with a letter or digit."))
    nodes = list({node.pk: node for node in (head, *others)}.values())
    for node in nodes:
        check_free(node)
        if network:
            address_in(node, network)
    try:
        with transaction.atomic():
            Cluster.objects.filter(pk__in=[node.cluster_id for node in nodes]).delete()  # of one node, unused
            made = Cluster.objects.create(
                name=name, head=head, network=network, port_base=port_base, ray_token=secrets.token_hex(32))
            Node.objects.filter(pk__in=[node.pk for node in nodes]).update(cluster=made)
    except IntegrityError as error:
        raise Problem(
            _("A cluster named %(name)s exists already.") % {"name": name}, _("Choose another name.")) from error
    return made.fresh()


def of_node(node: Node) -> Cluster:
    """The cluster the node is in; a cluster of its own is made where there is none."""
    with transaction.atomic():
        if node.cluster is None:
            found = node.heads.first()
            node.cluster = found or Cluster.objects.create(
                name=_free_name(node.name), head=node, ray_token=secrets.token_hex(32))
            node.save(update_fields=["cluster"])
        return node.cluster


def _free_name(wanted: str) -> str:
    taken = set(Cluster.objects.filter(name__startswith=wanted[:56]).values_list("name", flat=True))
    return next(name for name in (wanted, *(f"{wanted[:56]}-{n}" for n in range(2, 10**6))) if name not in taken)


def check_free(node: Node) -> None:
    """Raises `Problem` unless the node can go into another cluster: it is in none, or alone in one nobody uses."""
    cluster = node.cluster
    if cluster is None:
        return
    if len(members(cluster)) > 1:
        raise Problem(
            _("%(node)s is in the cluster %(cluster)s already.") % {"node": node.name, "cluster": cluster.name},
            _("Let it leave that one first."))
    used = owners(cluster)
    if used or running(node):
        raise Problem(
            _("%(node)s is in use: %(by)s.") % {"node": node.name, "by": ", ".join(used) or "Ray"},
            _("Stop and delete what uses it first."))


def owners(cluster: Cluster) -> list[str]:
    """The names of what was made for this cluster and needs it to exist, running or not."""
    return _asked(cluster, running=False)


def users(cluster: Cluster) -> list[str]:
    """The names of what needs the cluster's Ray now."""
    return _asked(cluster, running=True)


def _asked(cluster: Cluster, *, running: bool) -> list[str]:
    answers = signals.cluster_used.send(Cluster, cluster=cluster, running=running)
    return [name for _receiver, names in answers for name in cast(list[str], names)]


# --- stages, also for runs about what stands on a cluster ---------------------------------------------------------


def ray_stages(nodes: Sequence[Node]) -> list[list[Planned]]:
    """Ray on all of these nodes, the head first in the list and in time. Skipped where it runs.

    Each node must have been looked at and found to have room before: ``ray-room``.
    """
    head, *others = nodes
    if not others:
        return [[("ray-head", head)]]
    workers: list[Planned] = [("ray-worker", node) for node in others]
    return [[("alike", head)], [("ray-head", head)], workers, [("ray-joined", head)]]


# --- stories -----------------------------------------------------------------------------------------------------


def form(cluster: Cluster, by: User | None) -> Run:
    """Start Ray on the head and have the others join it. It then runs until it is dissolved."""
    nodes = members(cluster)
    sight.check(nodes)
    as_members(nodes)  # raises where one has no address in the cluster's network
    prepare = preparation.prepare_stages(*nodes)[:-1]  # "ray-room" looks again
    room: list[Planned] = [("ray-room", node) for node in nodes]
    stages = [*prepare, room, *ray_stages(nodes)]
    with transaction.atomic():
        run = runs.start("form", cluster.subject, stages, by)
        if not change(cluster, ClusterState.STARTING, kept=True, restarts=0, next_try_at=None):
            raise Problem(
                _("%(cluster)s runs already, or is being stopped.") % {"cluster": cluster.name},
                _("Its page shows how it is."))
    return run


def dissolve(cluster: Cluster, by: User | None) -> Run:
    """Stop Ray on all nodes. Raises `Problem` while something needs it."""
    used = users(cluster)
    if used:
        raise Problem(
            _("%(names)s runs on %(cluster)s.") % {"names": ", ".join(used), "cluster": cluster.name},
            _("Stop it first: without Ray it would only fail."))
    nodes = members(cluster)
    with transaction.atomic():
        _give_up_runs(cluster)
        if not change(cluster, ClusterState.STOPPING, kept=False, restarts=0, next_try_at=None):
            raise Problem(
                _("%(cluster)s is being stopped already.") % {"cluster": cluster.name}, _("Wait for it to end."))
        return runs.start("dissolve", cluster.subject, [[("ray-stop", node) for node in nodes]], by)


def _give_up_runs(cluster: Cluster) -> None:
    for run in Run.objects.filter(about=cluster.subject).exclude(state__in=FINISHED):
        runs.cancel(run, _("stopped on request"))


def join(cluster: Cluster, node: Node, by: User | None) -> Run | None:
    """Take a node into the cluster; where that runs, the node's Ray joins it now. Raises `Problem`."""
    check_free(node)
    if cluster.network:
        address_in(node, cluster.network)
    up = cluster.fresh().state not in AT_REST
    if up:
        sight.check([cluster.head, node])
    with transaction.atomic():
        if node.cluster is not None:
            node.cluster.delete()
        Node.objects.filter(pk=node.pk).update(cluster=cluster)
        if not up:
            return None
        room: list[Planned] = [("ray-room", node)]
        stages = [*preparation.prepare_stages(node)[:-1], room, *ray_stages([cluster.head, node])]
        return runs.start("join", cluster.subject, stages, by)


def leave(cluster: Cluster, node: Node, by: User | None) -> Run | None:
    """Take a node out of the cluster; its Ray is ended first. Raises `Problem` for the head, or while it is needed.

    One that cannot be reached leaves at once, and its Ray is ended when it is back.
    """
    if node.pk == cluster.head_id:
        raise Problem(
            _("%(node)s is the head of %(cluster)s and cannot leave it.")
            % {"node": node.name, "cluster": cluster.name},
            _("Stop the cluster and make another one with another head."))
    used = users(cluster)
    if used:
        raise Problem(
            _("%(names)s runs on %(cluster)s and may use %(node)s.")
            % {"names": ", ".join(used), "cluster": cluster.name, "node": node.name},
            _("Stop it first."))
    with transaction.atomic():
        if not running(node) or node.fresh().state == NodeState.UNREACHABLE:
            _let_go(node)
            return None
        return runs.start("leave", cluster.subject, [[("ray-end", node)]], by)


def _let_go(node: Node) -> None:
    Node.objects.filter(pk=node.pk).update(cluster=None, ray=None)


def change_network(cluster: Cluster, network: str, port_base: int) -> None:
    """Another network or other ports, from the next start on. Raises `Problem` while it runs."""
    _check_at_rest(cluster)
    if network:
        for node in members(cluster):
            address_in(node, network)
    Cluster.objects.filter(pk=cluster.pk).update(network=network, port_base=port_base)
    cluster.poke()


def offer(cluster: Cluster, resources: Mapping[str, Mapping[str, float]]) -> None:
    """What each node offers Ray besides processors and GPUs, by node name, from the next start on."""
    nodes = {node.name: node for node in members(cluster.fresh())}
    for name in resources.keys() - nodes.keys():
        raise Problem(
            _("%(node)s is not in %(cluster)s.") % {"node": name, "cluster": cluster.name}, _("Name one that is."))
    for name, node in nodes.items():
        Node.objects.filter(pk=node.pk).update(ray_resources=dict(resources.get(name, {})))


def clear(node: Node, named: Sequence[str], by: User | None) -> Run:
    """End processes of somebody else's Ray or vLLM: those named, as "pid:start", and still the same. A person asked."""
    known = {f"{process.pid}:{process.started}" for process in foreign_leftovers(node.facts)}
    if not named or set(named) - known:
        raise Problem(
            _("Other processes run on %(node)s by now.") % {"node": node.name}, _("Look at the list once more."))
    return runs.start("clear", node.subject, [[("end-foreign", node)]], by, processes=list(named))


def _check_at_rest(cluster: Cluster) -> None:
    if cluster.fresh().state not in AT_REST or any(map(running, members(cluster))):
        raise Problem(_("%(cluster)s still runs.") % {"cluster": cluster.name}, _("Stop it first."))


def delete(cluster: Cluster) -> None:
    """Forget a cluster that is stopped; its nodes stay. Raises `Problem` while it runs or something stands on it."""
    owned = owners(cluster)
    if owned:
        raise Problem(
            _("%(names)s stands on %(cluster)s.") % {"names": ", ".join(owned), "cluster": cluster.name},
            _("Delete it first."))
    _check_at_rest(cluster)
    cluster.delete()


def _about(run: Run) -> Cluster | None:
    return Cluster.objects.filter(pk=run.about.partition(":")[2]).select_related("head").first()


def _formed(run: Run, ok: bool, reason: str) -> None:
    """`ray-joined` made it ready; a start that failed leaves nothing running and waits for somebody."""
    cluster = _about(run)
    if cluster is not None and not ok:
        change(cluster, ClusterState.FAILED, reason)


def _dissolved(run: Run, ok: bool, reason: str) -> None:
    cluster = _about(run)
    if cluster is not None:
        note_stopped(cluster)
        if not ok:
            change(cluster, ClusterState.FAILED, reason)
        elif still := [node for node in members(cluster) if running(node)]:  # `clusters_care` ends it
            told = " ".join(map(sight.left, still))
            Cluster.objects.filter(pk=cluster.pk, state=ClusterState.STOPPING).update(reason=told)


def _joined(run: Run, ok: bool, reason: str) -> None:
    """Nothing more: a node that could not join stays a member, is tried again, or leaves on request."""


def _left(run: Run, ok: bool, reason: str) -> None:
    if ok:
        for step in Step.objects.filter(run=run).select_related("node"):
            _let_go(step.node)


runs.register_story(Story("form", gettext_lazy("Start the cluster"), _formed))
runs.register_story(Story("dissolve", gettext_lazy("Stop the cluster"), _dissolved))
runs.register_story(Story("join", gettext_lazy("A node joins"), _joined))
runs.register_story(Story("leave", gettext_lazy("A node leaves"), _left))
runs.register_story(Story("clear", gettext_lazy("End other people's Ray"), _joined))
runs.register_story(Story("mend", gettext_lazy("Bring back what is missing"), _joined))
