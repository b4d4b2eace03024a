"""What the steps of a stop do: every process of a server is ended, then Ray's if nothing else uses it."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from deployments.rollout import freed
from deployments.rollout.serving import replica_of
from deployments.rollout.steps import deployment_of
from nodes import ending, runs
from nodes.clusters import steps as clusters_steps
from nodes.clusters import stories as clusters
from nodes.models import Step
from nodes.recipes import Satisfied
from nodes.runs import Done, StepKind, Waiting
from nodes.states import JOB_ACTIVE, ClusterState

#: After its end a server's memory is free within this time.
MEMORY_TIME = timedelta(seconds=40)


def _stop_server(step: Step) -> Satisfied | Waiting:
    replica = replica_of(step)
    freed.remember(replica)
    return ending.begin_end(replica.server)


def _server_ended(step: Step) -> Done | Waiting:
    """Over when no process is left and the memory is back, which a driver may need some seconds for."""
    replica = replica_of(step)
    ended = ending.ended(step, replica.server)
    if isinstance(ended, Waiting) or (replica.server is not None and replica.server.fresh().state in JOB_ACTIVE):
        return ended
    late = step.started_at is not None and timezone.now() - step.started_at > ending.GRACE + MEMORY_TIME
    proof = freed.proof(replica, last_look=late)
    return Waiting(_("waiting for its memory to be free")) if proof is None else Done(proof)


def _stop_ray(step: Step) -> Satisfied | Waiting:
    deployment = deployment_of(step)
    cluster = deployment.cluster
    if cluster.kept:
        return Satisfied(_("the cluster was started by itself and stays"))
    others = [name for name in clusters.users(cluster) if name != deployment.name]
    if others:
        return Satisfied(_("still used by %(name)s") % {"name": others[0]})
    clusters_steps.change(cluster, ClusterState.STOPPING)
    return clusters_steps.begin_end(step)


runs.register(
    StepKind("stop-server", gettext_lazy("Stop the model server"), _stop_server, _server_ended),
    StepKind("stop-ray", gettext_lazy("Stop Ray"), _stop_ray, clusters_steps.ray_ended),
)
