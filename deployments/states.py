"""States of deployments: the words, and which may follow which. Pure."""

from __future__ import annotations

from enum import StrEnum

from nodes.states import following


class DeploymentState(StrEnum):
    DRAFT = "draft"
    ROLLING_OUT = "rolling_out"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


DEPLOYMENT_TRANSITIONS = following(
    draft="rolling_out",
    rolling_out="ready failed stopping",
    ready="degraded stopping failed",
    degraded="ready stopping failed",
    stopping="stopped failed",
    stopped="rolling_out",
    failed="rolling_out stopping stopped",
)

#: Requests are sent to a deployment in these states.
SERVING = frozenset({DeploymentState.READY, DeploymentState.DEGRADED})
