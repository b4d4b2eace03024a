"""What the steps of a rollout do before a server is started: room on each node, room in Ray.

The model's steps are in `model_steps`, those of the servers in `serving`, Ray's own in `nodes.clusters.steps`; what
runs them all is `nodes.runs`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from deployments import commands, diagnosis
from deployments.models import Deployment, Replica
from nodes import runs
from nodes.clusters import room as clusters_room
from nodes.clusters import steps as clusters_steps
from nodes.clusters import view as clusters_view
from nodes.clusters.address import members
from nodes.clusters.view import View
from nodes.facts import Facts
from nodes.models import Step
from nodes.runs import Done, StepKind, Waiting

#: The part of a GPU's memory that vLLM takes where nothing else is said.
DEFAULT_SHARE = 0.92
#: In this time Ray has freed what a server that ended had.
FREEING = timedelta(seconds=20)


def deployment_of(step: Step) -> Deployment:
    """The deployment that the step's run is about."""
    return Deployment.objects.select_related("cluster__head").get(pk=step.run.about.partition(":")[2])


def _room(step: Step) -> Done:
    """Ports and memory, as they are now, so that a start that cannot succeed fails now."""
    facts = clusters_room.make_room(step)
    for replica in deployment_of(step).replicas.filter(node=step.node, state="waiting"):
        _check_port(replica, facts)
    return Done(_("%(free).1f GiB of memory available") % {"free": facts.memory_available / 2**30})


def _check_port(replica: Replica, facts: Facts) -> None:
    if replica.port in facts.listening:
        raise Problem(
            _("Port %(port)d on %(node)s is in use by another program.")
            % {"port": replica.port, "node": replica.node.name},
            _("Give the deployment another port, or end what uses this one: ss -ltnp shows it."),
        )


def _placement(step: Step) -> Done | Waiting:
    """Whether Ray can place the workers now: vLLM itself would wait half an hour to find out that it cannot."""
    view = clusters_steps.fresh_view(deployment_of(step).cluster)
    try:
        return _placed(step, view)
    except Problem as problem:
        # Ray frees the GPUs of a server that has just ended some seconds later; what it lacks at all will not come.
        if isinstance(view, str) or view.gpus()[1] < _wanted(step)[0]:
            raise
        return Waiting(problem.what)


def _placed_yet(step: Step) -> Done | Waiting:
    try:
        return _placed(step, clusters_steps.ask_view(deployment_of(step).cluster))
    except Problem as problem:
        if step.started_at is None or timezone.now() - step.started_at > FREEING:
            raise
        return Waiting(problem.what)


def _wanted(step: Step) -> tuple[int, float]:
    """The GPUs that the servers to be started want of Ray, and the part of their memory."""
    to_start = deployment_of(step).replicas.filter(state="waiting")
    if step.about:
        to_start = to_start.filter(pk=step.about.partition(":")[2])
    options = [commands.checked(one.spec["options"]) for one in to_start]
    return sum(map(clusters_view.world_size, options)), _share(options)


def _placed(step: Step, view: View | str) -> Done:
    wanted, share = _wanted(step)
    nodes = members(deployment_of(step).cluster)
    if isinstance(view, str):
        raise Problem(_("Ray on %(node)s does not answer: %(why)s") % {"node": step.node.name, "why": view})
    clusters_view.check_room(view, clusters_steps.as_members(nodes), wanted)
    clusters_steps.check_memory(nodes, share, wanted)
    used, total = view.gpus()
    return Done(_("%(wanted)d of %(free)g free") % {"wanted": wanted, "free": total - used})


def _share(options: Iterable[dict[str, object]]) -> float:
    """The part of a GPU's whole memory that vLLM will ask to find free."""
    told = [one.get("gpu-memory-utilization", DEFAULT_SHARE) for one in options]
    return max((float(share) for share in told if isinstance(share, int | float)), default=DEFAULT_SHARE)


def _diagnosed(log: str) -> str:
    found = diagnosis.match(log)
    return f"{found.cause}\n{found.fix}" if found else ""


clusters_steps.explainers.append(_diagnosed)
runs.register(
    StepKind("room", gettext_lazy("Ports and memory"), _room),
    StepKind("placement", gettext_lazy("Free GPUs"), _placement, _placed_yet),
)
