"""States of deployments and of their replicas: the words, and which may follow which. Pure."""

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
    rolling_out="ready degraded failed stopping",
    ready="rolling_out degraded stopping failed",
    degraded="rolling_out ready degraded stopping failed",
    stopping="stopped failed",
    stopped="rolling_out",
    failed="rolling_out ready degraded failed stopping stopped",
)


class ReplicaState(StrEnum):
    WAITING = "waiting"  # wanted, and no server yet: it is about to be started, or again after its server died
    ROLLING_OUT = "rolling_out"
    READY = "ready"  # answers prompts: in service
    UNREACHABLE = "unreachable"  # out of sight together with its node; nobody knows that it died
    DRAINING = "draining"  # finishes what it was asked, and is asked nothing more
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"  # it will not be started again by itself


REPLICA_TRANSITIONS = following(
    waiting="waiting rolling_out stopping stopped failed",
    rolling_out="ready waiting stopping failed",
    ready="waiting unreachable draining stopping failed",
    unreachable="ready waiting stopping failed",
    draining="ready waiting stopping stopped failed",
    stopping="stopped failed",
    stopped="waiting",
    failed="waiting stopping stopped",
)

#: Requests are sent to a deployment in these states.
SERVING = frozenset({DeploymentState.READY, DeploymentState.DEGRADED})

#: From these states a deployment can be started, and only then deleted.
AT_REST = frozenset({DeploymentState.DRAFT, DeploymentState.STOPPED, DeploymentState.FAILED})

#: A replica in one of these states comes back by itself.
COMING_BACK = frozenset({ReplicaState.WAITING, ReplicaState.UNREACHABLE})

#: A server of a replica in one of these states must not run; whoever finds one ends it.
REPLICA_AT_REST = frozenset({ReplicaState.STOPPED, ReplicaState.FAILED})
