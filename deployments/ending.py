"""What the steps of a stop do: every process of a server is ended, then Ray's if nothing else uses it."""

from __future__ import annotations

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from deployments.serving import replica_of
from deployments.steps import deployment_of
from nodes import clusters, clusters_steps, ending, runs
from nodes.models import Step
from nodes.recipes import Satisfied
from nodes.runs import StepKind, Waiting
from nodes.states import ClusterState


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
    StepKind("stop-server", gettext_lazy("Stop the model server"),
             lambda step: ending.begin_end(replica_of(step).server),
             lambda step: ending.ended(step, replica_of(step).server)),
    StepKind("stop-ray", gettext_lazy("Stop Ray"), _stop_ray, clusters_steps.ray_ended),
)
