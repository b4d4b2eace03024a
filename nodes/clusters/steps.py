"""What the steps of clusters do on a node: room for Ray, its head, its workers, whether all are there, its end.

Runs of deployments use them too; what they are about is the cluster of the step's node.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane import streams
from controlplane.problems import Problem
from nodes import ending, logs, preparation, runs, sight, signals
from nodes.clusters import view as clusters_view
from nodes.clusters.address import inner_address, members
from nodes.clusters.view import Member, View
from nodes.hosts import shared_host
from nodes.models import Cluster, Job, Node, Step
from nodes.recipes import Satisfied, ray
from nodes.remote.host import ask
from nodes.runs import Begun, Done, Later, StepKind, Waiting
from nodes.states import CLUSTER_UP, JOB_ACTIVE, ClusterState

#: How long Ray's head may take to answer, and all nodes to be in it, before the start has failed.
PATIENCE = timedelta(seconds=60)
#: Seconds that one question to Ray waits for it to answer.
_ASK = 5.0
#: Seconds for which a view is as good as a new one.
_FRESH = 5.0
_UP = "Ray runtime started"


def cluster_of(node: Node) -> Cluster:
    """The cluster a node is in, or heads. Raises `Problem` where there is none (any more)."""
    found = node.cluster or node.heads.first()
    if found is None:
        raise Problem(_("%(node)s is in no cluster.") % {"node": node.name}, _("Let it join one first."))
    return found


def plan_of(cluster: Cluster) -> ray.PortPlan:
    """Every port of the cluster's Ray, the same on each of its nodes."""
    return ray.port_plan(cluster.port_base or settings.PORT_BASE)


def running(node: Node) -> bool:
    """Whether the job that holds the node in its cluster runs, as far as it was seen."""
    return node.ray is not None and node.ray.state in JOB_ACTIVE


def as_members(nodes: list[Node]) -> list[Member]:
    """What Ray should have of these nodes."""
    return [Member(node.name, inner_address(node), node.facts, node.ray_resources) for node in nodes]


def change(cluster: Cluster, to: ClusterState, reason: str = "", **fields: Any) -> bool:
    """As `Lifecycle.move`, and whoever builds on clusters is told."""
    if not cluster.move(to, reason, **fields):
        return False
    transaction.on_commit(lambda: signals.cluster_changed.send_robust(Cluster, cluster=cluster))
    return True


#: Who can tell from a log why something ended: text → cause and fix, empty where it does not know.
explainers: list[Callable[[str], str]] = []


def why_ended(job: Job) -> str:
    """Why a Ray ended, from its log; raises `HostProblem` where only a node that is away has that."""
    log = logs.tail(job, 1 << 17)
    told = clusters_view.died_of(log) or next(filter(None, (explain(log) for explain in explainers)), "")
    return told or runs.last_words(job)


def _explain(step: Step) -> str:
    assert step.job is not None
    return why_ended(step.job)


# --- views of the cluster, as Ray has it -------------------------------------------------------------------------


def view_key(cluster_id: int) -> str:
    return f"cluster:view:{cluster_id}"


def last_view(cluster: Cluster) -> View | None:
    """What was last seen of the cluster; None when that was too long ago to tell."""
    kept = streams.client().get(view_key(cluster.pk))
    return View.from_json(kept) if isinstance(kept, bytes) else None


def keep_view(cluster: Cluster, text: str) -> View:
    """Remember what ``ray_view.py`` printed, as of now. Raises ValueError where it is no view."""
    view = replace(View.from_json(text), t=time.time())
    streams.client().set(view_key(cluster.pk), json.dumps(asdict(view)), ex=3600)
    return view


def ask_view(cluster: Cluster) -> View | str:
    """How the cluster is now, asked on its head; or why Ray does not say."""
    head = cluster.head
    question = ray.view(preparation.site(head), plan_of(cluster), inner_address(head), _ASK)
    result = shared_host(head).run(question, timeout=_ASK + 15)
    lines = result.text.strip().splitlines()
    try:
        return keep_view(cluster, lines[-1]) if result.status == 0 and lines else result.last_words()
    except ValueError as error:
        return str(error)


def fresh_view(cluster: Cluster) -> View | str:
    """As `ask_view`, without asking where a moment ago somebody did."""
    last = last_view(cluster)
    return last if last is not None and time.time() - last.t < _FRESH else ask_view(cluster)


def check_memory(nodes: list[Node], share: float, wanted: int) -> None:
    """Raises `Problem` unless ``wanted`` GPUs of these nodes have the ``share`` of their memory free, as vLLM asks."""
    if not any(node.facts.gpus for node in nodes):
        return
    facts = {node.name: preparation.gather(node) for node in nodes}
    clusters_view.check_memory(facts, share, wanted)


# --- alike -------------------------------------------------------------------------------------------------


def _alike(step: Step) -> Done:
    """The same versions everywhere, and for each node an address that the others can use."""
    nodes = members(cluster_of(step.node))
    wanted = as_members(nodes)
    for problem in clusters_view.unlike(wanted):
        raise problem
    addresses = [ray.ray_address(member.address) for member in wanted]
    for member, address in zip(wanted, addresses, strict=True):
        if address == ray.LOOPBACK or addresses.count(address) > 1:
            raise Problem(
                _("The other nodes cannot reach %(node)s by the address Quarterdeck reaches it by.")
                % {"node": member.name},
                _("Edit the cluster and name the network that all its nodes share."),
            )
    return Done(", ".join(addresses))


# --- Ray's head, its workers, all of them ------------------------------------------------------------------------


def _begin_head(step: Step) -> Begun:
    cluster = cluster_of(step.node)
    if running(step.node) and step.node.ray != step.job:
        if cluster.fresh().state in CLUSTER_UP:
            return Satisfied(_("running already"))
        return Waiting(_("waiting for Ray to answer"))
    if cluster.fresh().state not in CLUSTER_UP:  # what is up and lost its head stays degraded until that is back
        change(cluster, ClusterState.STARTING)
    return ray.start_head(
        step.node.facts, preparation.site(step.node), plan_of(cluster), inner_address(step.node),
        cluster.ray_token, step.node.ray_resources)


def _begin_worker(step: Step) -> Begun:
    cluster, node = cluster_of(step.node), step.node
    head = cluster.head.ray
    if head is None or head.state not in JOB_ACTIVE:
        raise Problem(
            _("The head, %(head)s, does not run Ray.") % {"head": cluster.head.name}, _("Start the cluster."))
    if running(node) and node.ray != step.job:
        assert node.ray is not None
        if node.ray.created_at > head.created_at:
            return Satisfied(_("running already"))
        runs.end_job(node.ray, "KILL")  # it belongs to a head that is no more
        return Later(_("waiting for an earlier Ray to end"))
    return ray.start_worker(
        node.facts, preparation.site(node), plan_of(cluster), inner_address(node), cluster.ray_token,
        inner_address(cluster.head), node.ray_resources)


def _attach(step: Step, job: Job) -> bool:
    """Note Ray's job on the node, unless another run was faster."""
    node = Node.objects.select_for_update().get(pk=step.node_id)
    if running(node):
        return False
    node.ray = job
    node.save(update_fields=["ray"])
    return True


def _probe_head(step: Step) -> Done | Waiting:
    cluster = cluster_of(step.node)
    view = ask_view(cluster)
    here = as_members([step.node])
    if isinstance(view, View) and not clusters_view.absent(view, here):
        if len(members(cluster)) == 1:
            _all_there(cluster, view, here)
        return Done(clusters_view.summary(view, here))
    if not running(step.node.fresh()):
        raise Problem(_("Ray ended on %(node)s.") % {"node": step.node.name}, _("Its log says why."))
    if _late(step):
        raise Problem(
            _("Ray did not answer within %(seconds)d s.") % {"seconds": PATIENCE.seconds},
            _("Its log says more. Leftovers of an earlier Ray on this server are the usual reason."))
    return Waiting(_("waiting for Ray to answer"))


def _probe_worker(step: Step) -> Done | Waiting:
    """Over once it says itself that it has joined; whether the head agrees is asked once, for all of them."""
    assert step.job is not None
    if _UP in logs.tail(step.job):
        return Done()
    if _late(step):
        raise Problem(
            _("Ray on %(node)s did not join within %(seconds)d s.")
            % {"node": step.node.name, "seconds": PATIENCE.seconds},
            _("See that the nodes reach each other by the cluster's addresses, on all of its ports."))
    return Waiting(_("joining"))


def _probe_joined(step: Step) -> Done | Waiting:
    """All that were started are alive, under their own addresses and with what they have to offer."""
    cluster = cluster_of(step.node)
    nodes = [node for node in members(cluster) if running(node) or _started_here(step, node)]
    for node in nodes:
        if not running(node):
            why = why_ended(node.ray) if node.ray else ""
            told = {"node": node.name, "why": why}
            raise Problem(_("Ray ended on %(node)s: %(why)s") % told, _("Its log says more."))
    view = ask_view(cluster)
    wanted = as_members(nodes)
    missing = clusters_view.absent(view, wanted) if isinstance(view, View) else {cluster.head.name: view}
    if isinstance(view, View) and not missing:
        _all_there(cluster, view, wanted)
        return Done(clusters_view.summary(view, wanted))
    if _late(step):
        raise Problem(_not_joined(missing), _("See that the nodes reach each other, on all of the cluster's ports."))
    return Waiting(_("waiting for %(nodes)s") % {"nodes": ", ".join(missing)})


def _started_here(step: Step, node: Node) -> bool:
    return step.run.steps.filter(node=node, kind__in=("ray-head", "ray-worker")).exists()


def _not_joined(missing: Mapping[str, str]) -> str:
    told = "; ".join(f"{name}: {why}" for name, why in missing.items())
    return _("Not all nodes are in the cluster after %(seconds)d s. %(told)s") % {
        "seconds": PATIENCE.seconds, "told": told}


def _all_there(cluster: Cluster, view: View, wanted: list[Member]) -> None:
    """Raises `Problem` where Ray offers something else than the nodes have; else the cluster is ready."""
    for problem in clusters_view.differences(view, wanted):
        raise problem
    left_out = {node.name for node in members(cluster)} - {member.name for member in wanted}
    if left_out:
        told = {"nodes": ", ".join(sorted(left_out))}
        change(cluster, ClusterState.DEGRADED, _("Not in the cluster: %(nodes)s.") % told)
    else:
        change(cluster, ClusterState.READY)


def _late(step: Step) -> bool:
    return step.started_at is not None and timezone.now() - step.started_at > PATIENCE


# --- its end -----------------------------------------------------------------------------------------------------


def _begin_stop(step: Step) -> Satisfied | Waiting:
    change(cluster_of(step.node), ClusterState.STOPPING)
    return begin_end(step)


def begin_end(step: Step) -> Satisfied | Waiting:
    """Ask the node's Ray to end; its own processes only, never `ray stop`."""
    return ending.begin_end(step.node.ray)


def ray_ended(step: Step) -> Done | Waiting:
    """As any job's end; then what Ray left in its temporary directory goes too."""
    over = ending.ended(step, step.node.ray)
    if isinstance(over, Done):
        if not sight.is_away(step.node):
            ask(shared_host(step.node), ray.clean_up(preparation.site(step.node)))
        note_stopped(cluster_of(step.node))
    return over


def note_stopped(cluster: Cluster) -> None:
    """A cluster that was being stopped has, once none of its nodes runs Ray."""
    with transaction.atomic():
        if not any(running(node) for node in members(cluster.fresh())):
            change(cluster, ClusterState.STOPPED, only_from=ClusterState.STOPPING)


runs.register(
    StepKind("alike", gettext_lazy("Same versions, own addresses"), _alike),
    StepKind("ray-head", gettext_lazy("Ray"), _begin_head, _probe_head, True, _explain, _attach),
    StepKind("ray-worker", gettext_lazy("Ray joins"), _begin_worker, _probe_worker, True, _explain, _attach),
    StepKind("ray-joined", gettext_lazy("All nodes in Ray"), lambda step: Waiting(), _probe_joined),
    StepKind("ray-stop", gettext_lazy("Stop Ray"), _begin_stop, ray_ended),
    StepKind("ray-end", gettext_lazy("End an earlier Ray"), begin_end, ray_ended),
)
