"""What the steps of a rollout do on a node before a server is started there: model, room, Ray.

The servers are `deployments.serving`. Recipes and commands are pure, the engine is `nodes.runs`.
"""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from deployments.models import Deployment, Replica
from deployments.upstream import inner_address
from nodes import preparation, runs
from nodes.facts import Facts
from nodes.hosts import shared_host
from nodes.models import Job, Node, Step
from nodes.recipes import Satisfied, models, ray
from nodes.remote.command import Command
from nodes.runs import Done, StepKind, Waiting
from nodes.states import JOB_ACTIVE

#: How long Ray may take to answer before its start has failed.
RAY_PATIENCE = timedelta(seconds=90)


def deployment_of(step: Step) -> Deployment:
    """The deployment that the step's run is about."""
    return Deployment.objects.select_related("cluster__head").get(pk=step.run.about.partition(":")[2])


def _model(step: Step) -> Command | Satisfied:
    deployment = deployment_of(step)
    facts, site = step.node.facts, preparation.site(step.node)
    if deployment.model == Deployment.DEMO:
        return models.demo_model(facts, site)
    return models.model_present(deployment.model)(facts, site)


def _room(step: Step) -> Done:
    """Ports and memory are looked at once more, so that a start that cannot succeed fails now."""
    facts = preparation.gather(step.node)
    for replica in deployment_of(step).replicas.filter(node=step.node, state="waiting"):
        _check_port(replica, facts)
    plan = ray.port_plan(settings.PORT_BASE)
    busy = sorted(set(plan.fixed) & set(facts.listening))
    if busy and not _ray_runs(step.node):
        raise Problem(
            _("Port %(port)d on %(node)s, which Ray needs, is in use by another program.")
            % {"port": busy[0], "node": step.node.name},
            _("End what uses it (ss -ltnp shows it), or move all of Ray's ports with PORT_BASE."),
        )
    return Done(_("%(free).1f GiB of memory available") % {"free": facts.memory_available / 2**30})


def _check_port(replica: Replica, facts: Facts) -> None:
    if replica.port in facts.listening:
        raise Problem(
            _("Port %(port)d on %(node)s is in use by another program.")
            % {"port": replica.port, "node": replica.node.name},
            _("Give the deployment another port, or end what uses this one: ss -ltnp shows it."),
        )


def _ray_runs(node: Node) -> bool:
    return node.ray is not None and node.ray.state in JOB_ACTIVE


def _ray(step: Step) -> Command | Satisfied:
    if _ray_runs(step.node) and step.node.ray != step.job:
        return Satisfied(_("running already"))
    cluster = deployment_of(step).cluster
    return ray.start_head(
        step.node.facts, preparation.site(step.node), ray.port_plan(settings.PORT_BASE),
        inner_address(step.node), cluster.ray_token)


def _attach_ray(step: Step, job: Job) -> None:
    Node.objects.filter(pk=step.node_id).update(ray=job)


def _ray_probe(step: Step) -> Done | Waiting:
    plan = ray.port_plan(settings.PORT_BASE)
    status = ray.status(preparation.site(step.node), plan, inner_address(step.node))
    result = shared_host(step.node).run(status, timeout=20)
    if result.status == 0:
        return Done(result.last_words())
    if step.started_at and timezone.now() - step.started_at > RAY_PATIENCE:
        raise Problem(
            _("Ray did not answer within %(seconds)d s.") % {"seconds": RAY_PATIENCE.seconds},
            _("Its log says more. Leftovers of an earlier Ray on this server are the usual reason."))
    return Waiting(_("waiting for Ray to answer"))


runs.register(
    StepKind("model", gettext_lazy("Model"), _model),
    StepKind("room", gettext_lazy("Ports and memory"), _room),
    StepKind("ray", gettext_lazy("Ray"), _ray, _ray_probe, service=True, attach=_attach_ray),
)
