"""The life of a deployment, as stories: rolled out over its cluster in stages, stopped, deleted, and looked after.

A rollout: environment → model → room → Ray → free GPUs → serve → verify with a real prompt → READY. Every step is
skipped where the facts already satisfy it. What fails says where and why, and leaves no model server behind.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from deployments import aliases, planning
from deployments.gateway import routes
from deployments.models import Deployment, Replica
from deployments.rollout import model_steps, placing
from deployments.states import AT_REST, SERVING, DeploymentState, ReplicaState
from nodes import ending, preparation, registration, runs, sight
from nodes.clusters import stories as clusters
from nodes.clusters.address import members
from nodes.models import Cluster, Node, Run
from nodes.recipes.ray import port_plan
from nodes.runs import Stages, Story
from nodes.states import FINISHED, JOB_ACTIVE, NodeState

DEMO_NAME = "smollm2"


def create(
    name: str, model: str, on: Node | Cluster, port: int | None, options: dict[str, Any], by: User | None
) -> Deployment:
    """A new deployment in state draft, on a cluster or that of a node. Raises `Problem` for a name or port taken."""
    check_new(name, on if isinstance(on, Node) else on.head, port)
    cluster = on if isinstance(on, Cluster) else clusters.of_node(on)
    taken = set(Deployment.objects.filter(cluster__head=cluster.head).values_list("port", flat=True))
    return Deployment.objects.create(
        name=name, model=model, cluster=cluster, port=port or _free_port(taken), options=options, created_by=by
    )


def check_new(name: str, head: Node, port: int | None) -> None:
    """Raise `Problem` for a name that requests use already, or a port that one on this head has."""
    aliases.check_free(name)
    taken = {d.port: d.name for d in Deployment.objects.filter(cluster__head=head)}
    if port in taken:
        raise Problem(
            _("Port %(port)d on %(node)s belongs to the deployment %(name)s.")
            % {"port": port, "node": head.name, "name": taken[port]},
            _("Choose another port, or leave the field empty."),
        )


def _free_port(taken: set[int]) -> int:
    first = port_plan(settings.PORT_BASE).end
    return next(port for port in range(first, first + placing.SERVER_PORTS) if port not in taken)


def start(deployment: Deployment, by: User | None) -> Run:
    """Roll the deployment out, by a plan of now. Raises `Problem` when it cannot start from its present state.

    A node that it needs and that cannot be reached is named at once.
    """
    _check_server_is_gone(deployment)
    if deployment.fresh().state in AT_REST:
        sight.check([deployment.cluster.head])  # it is asked for the model's files
        planning.renew(deployment)
    with transaction.atomic():
        state = deployment.fresh().state
        if state not in AT_REST or not deployment.move(DeploymentState.ROLLING_OUT, only_from=state):
            raise Problem(
                _("%(name)s is %(state)s and cannot be started now.")
                % {"name": deployment.name, "state": deployment.fresh().state.replace("_", " ")},
                _("Wait until it is stopped or ready."),
            )
        run = runs.start("rollout", deployment.subject, _rollout_stages(deployment, placing.place(deployment)), by)
    transaction.on_commit(routes.poke)
    return run


def _check_server_is_gone(deployment: Deployment) -> None:
    """A server of an earlier start that is still being ended must not be forgotten: it holds memory and the port."""
    resting = deployment.fresh().state in (DeploymentState.FAILED, DeploymentState.STOPPED)
    if resting and deployment.replicas.filter(server__state__in=JOB_ACTIVE).exists():
        raise Problem(
            _("The last model server of %(name)s is still being ended.") % {"name": deployment.name},
            _("Try again in some seconds. If its server cannot be reached, bring it back first."),
        )


def _rollout_stages(deployment: Deployment, replicas: Sequence[Replica]) -> Stages:
    """The same environment everywhere first; "room" then looks again at each node to which something was done."""
    nodes = nodes_of(deployment, replicas)
    sight.check(nodes)
    prepare = preparation.prepare_stages(*nodes)[:-1]
    return [*prepare, *start_stages(deployment, replicas)]


def nodes_of(deployment: Deployment, replicas: Sequence[Replica]) -> list[Node]:
    """The nodes that these replicas need: with Ray all of the cluster, the head first."""
    if _by_ray(replicas):
        return members(deployment.cluster)
    return list({replica.node_id: replica.node for replica in replicas}.values())


def _by_ray(replicas: Sequence[Replica]) -> bool:
    """By what they are started from: the deployment itself may have been edited since."""
    return any(one.spec.get("executor", "ray") == "ray" for one in replicas)


def start_stages(
    deployment: Deployment, replicas: Sequence[Replica], *, again_without: Sequence[Node] | None = None
) -> list[list[runs.Planned]]:
    """The model on every node, Ray on all of them, then the servers of these replicas where they belong.

    Nodes must be prepared. With ``again_without`` the replicas ran before: their model is there, and the nodes without
    which it has to do now are left alone.
    """
    nodes = [node for node in nodes_of(deployment, replicas) if node not in (again_without or ())]
    stages = model_steps.stages(deployment, nodes) if again_without is None else []
    stages = [*stages, [("room", node) for node in nodes]]
    if _by_ray(replicas):
        about = replicas[0].subject if len(replicas) == 1 else ""
        stages += [*clusters.ray_stages(nodes), [("placement", nodes[0], about)]]
    elif any(one.gpus for one in replicas):
        stages.append([("own-gpus", one.node, one.subject) for one in replicas])
    return stages + [[(kind, one.node, one.subject) for one in replicas] for kind in ("serve", "verify")]


def stop(deployment: Deployment, by: User | None) -> Run:
    """Stop the model server, and Ray if nothing else uses it. A rollout under way is given up.

    What runs on a node out of sight does not keep the others waiting: it is stopped when the node is back.
    """
    with transaction.atomic():
        for run in Run.objects.filter(about=deployment.subject).exclude(state__in=FINISHED):
            runs.cancel(run, _("stopped on request"))
        if not deployment.move(DeploymentState.STOPPING):
            raise Problem(
                _("%(name)s is not running.") % {"name": deployment.name}, _("There is nothing to stop."))
        run = _begin_stop(deployment, by)
    transaction.on_commit(routes.poke)
    return run


def _begin_stop(deployment: Deployment, by: User | None) -> Run:
    servers = deployment.replicas.select_related("node").exclude(state=ReplicaState.STOPPED)
    ends: list[runs.Planned] = [("stop-server", one.node, one.subject) for one in servers]
    for replica in servers:
        replica.move(ReplicaState.STOPPING)
    ray: list[runs.Planned] = [("stop-ray", node) for node in members(deployment.cluster)]
    return runs.start("stop", deployment.subject, [ends, ray], by)


def go_on_stopping(deployment: Deployment) -> Run | None:
    """Stop what a stop had to leave, once the nodes that were out of sight are back."""
    if _busy(deployment) or deployment.fresh().state != DeploymentState.STOPPING or sight.away(_left(deployment)):
        return None
    try:
        with transaction.atomic():
            return _begin_stop(deployment, None)
    except Problem:
        return None  # somebody else was faster


def _left(deployment: Deployment) -> list[Node]:
    """The nodes on which a server of it still runs, as far as it was seen."""
    return list({one.node_id: one.node for one in deployment.replicas.filter(server__state__in=JOB_ACTIVE)}.values())


def delete(deployment: Deployment, by: User | None) -> None:
    """Forget a deployment that is not running. Raises `Problem` while it is.

    What is left of it on nodes out of sight does not count: that is ended if they ever come back.
    """
    if not deletable(deployment.fresh()):
        raise Problem(_("%(name)s is still running.") % {"name": deployment.name}, _("Stop it first."))
    if len(sight.away(_left(deployment))) < len(_left(deployment)):
        _check_server_is_gone(deployment)
    cluster = deployment.cluster
    deployment.delete()
    if not cluster.kept and not cluster.deployments.exists() and len(members(cluster)) == 1:
        cluster.delete()
    routes.poke()


def deletable(deployment: Deployment) -> bool:
    """Whether nothing is being done with it and nothing of it is in sight that runs."""
    left = _left(deployment) if deployment.state == DeploymentState.STOPPING else []
    stuck = bool(left) and len(sight.away(left)) == len(left) and not _busy(deployment)
    return deployment.state in AT_REST or stuck


def _busy(deployment: Deployment) -> bool:
    return Run.objects.filter(about=deployment.subject).exclude(state__in=FINISHED).exists()


def try_demo(by: User | None) -> Deployment:
    """One click: this machine becomes a node, is prepared, and serves the demo model. Again is the same as once."""
    node = registration.register_local(by)
    found = Deployment.objects.filter(name=DEMO_NAME).first()
    deployment = found or create(DEMO_NAME, Deployment.DEMO, node, None, {}, by)
    if deployment.state not in (*SERVING, DeploymentState.ROLLING_OUT):
        start(deployment, by)
    return deployment


def shutdown_demo(timeout: float) -> None:
    """Stop the demo's model server and Ray and wait for it; worker and watch must be up.

    Raises `Problem` when they have not ended after ``timeout`` seconds.
    """
    deployment = Deployment.objects.filter(name=DEMO_NAME).first()
    if deployment is None or deployment.state in (DeploymentState.STOPPED, DeploymentState.DRAFT):
        return
    if deployment.state != DeploymentState.STOPPING:
        stop(deployment, None)
    deadline = time.monotonic() + timeout
    while deployment.fresh().state != DeploymentState.STOPPED:
        if time.monotonic() > deadline:
            raise Problem(
                _("The demo's model server did not end within %(seconds)d s.") % {"seconds": timeout},
                _("Start Quarterdeck again and stop it on its page, or end its processes by hand."),
            )
        time.sleep(0.2)


def _rolled_out(run: Run, ok: bool, reason: str) -> None:
    deployment = _about(run)
    for replica in deployment.replicas.all():
        if ok:
            replica.move(ReplicaState.READY, percent=100)
        elif replica.move(ReplicaState.FAILED, reason):
            ending.end_soon(replica.server)
    if ok:
        deployment.move(DeploymentState.READY)
        for node in deployment.cluster.nodes.all():
            node.move(NodeState.READY)
    else:
        deployment.move(DeploymentState.FAILED, reason)
    transaction.on_commit(routes.poke)


def _stopped(run: Run, ok: bool, reason: str) -> None:
    """Stopped is what is proved to be: with a server left on a node out of sight it goes on being stopped."""
    deployment = _about(run)
    left = _left(deployment) if ok else []
    for replica in deployment.replicas.exclude(node__in=left):
        replica.move(ReplicaState.STOPPED if ok else ReplicaState.FAILED, reason)
    if left:
        told = " ".join(map(sight.left, left))
        Deployment.objects.filter(pk=deployment.pk, state=DeploymentState.STOPPING).update(reason=told)
        deployment.poke()
    else:
        deployment.move(DeploymentState.STOPPED if ok else DeploymentState.FAILED, reason)
    transaction.on_commit(routes.poke)


def _about(run: Run) -> Deployment:
    return Deployment.objects.get(pk=run.about.partition(":")[2])


runs.register_story(Story("rollout", gettext_lazy("Roll out"), _rolled_out))
runs.register_story(Story("stop", gettext_lazy("Stop"), _stopped))
