"""What the steps of a stop do: every process of a server is ended, then Ray's if nothing else uses it."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from deployments.serving import replica_of
from deployments.states import DeploymentState
from deployments.steps import deployment_of
from nodes import preparation, runs
from nodes.hosts import shared_host
from nodes.models import Job, Step
from nodes.recipes import Satisfied, ray
from nodes.remote.host import ask
from nodes.runs import Done, StepKind, Waiting
from nodes.states import JOB_ACTIVE

#: After this long a server that was asked to end is killed.
GRACE = timedelta(seconds=20)


def _end(job: Job | None) -> Satisfied | Waiting:
    if job is None or (runs.end_job(job, "TERM") == 0 and job.state not in JOB_ACTIVE):
        return Satisfied(_("not running"))
    return Waiting(_("asked it to end"))


def _ended(step: Step, job: Job | None) -> Done | Waiting:
    """Over when no process is left. TERM alone is not enough: a vLLM that is starting can ignore it for ever."""
    if job is None:
        return Done()
    late = step.started_at is not None and timezone.now() - step.started_at > GRACE
    runner_is_gone = job.fresh().state not in JOB_ACTIVE
    if (late or runner_is_gone) and runs.end_job(job, "KILL") == 0 and runner_is_gone:
        return Done(_("no process is left"))
    return Waiting(_("waiting for its processes to end"))


def _ray_ended(step: Step) -> Done | Waiting:
    """As any job's end; then what Ray left in its temporary directory goes too."""
    ended = _ended(step, step.node.ray)
    if isinstance(ended, Done):
        ask(shared_host(step.node), ray.clean_up(preparation.site(step.node)))
    return ended


def _stop_ray(step: Step) -> Satisfied | Waiting:
    deployment = deployment_of(step)
    alive = (DeploymentState.ROLLING_OUT, DeploymentState.READY, DeploymentState.DEGRADED)
    other = deployment.cluster.deployments.filter(state__in=alive).exclude(pk=deployment.pk).first()
    if other is not None:
        return Satisfied(_("still used by %(name)s") % {"name": other.name})
    return _end(step.node.ray)


runs.register(
    StepKind("stop-server", gettext_lazy("Stop the model server"), lambda step: _end(replica_of(step).server),
             lambda step: _ended(step, replica_of(step).server)),
    StepKind("stop-ray", gettext_lazy("Stop Ray"), _stop_ray, _ray_ended),
)
