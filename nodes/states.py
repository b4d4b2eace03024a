"""States of nodes, runs, steps and jobs: the words, and which may follow which. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


def following(**rules: str) -> Mapping[str, frozenset[str]]:
    """``following(new="checking failed")``: state → the states that may come after it."""
    return {state: frozenset(followers.split()) for state, followers in rules.items()}


class NodeState(StrEnum):
    NEW = "new"
    CHECKING = "checking"
    PREPARING = "preparing"
    READY = "ready"
    UNREACHABLE = "unreachable"
    FAILED = "failed"
    REMOVING = "removing"  # what Quarterdeck put there is being taken away


NODE_TRANSITIONS = following(
    new="checking preparing ready unreachable failed removing",
    checking="new preparing ready unreachable failed",
    preparing="ready unreachable failed",
    ready="checking preparing unreachable failed removing",
    unreachable="new checking preparing ready failed removing",
    failed="checking preparing ready unreachable removing",
    removing="failed",
)


class CandidateState(StrEnum):
    """A server on its way to become a node."""

    ASKING = "asking"  # for its host key
    OFFERED = "offered"  # a person has to compare it
    APPROVED = "approved"  # being registered
    REGISTERED = "registered"
    FAILED = "failed"


CANDIDATE_TRANSITIONS = following(
    asking="offered failed", offered="approved failed", approved="registered failed", failed="asking")


class ClusterState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"  # every node is in it
    DEGRADED = "degraded"  # wanted, and some of it is missing
    STOPPING = "stopping"
    FAILED = "failed"  # did not start, and waits for somebody


CLUSTER_TRANSITIONS = following(
    stopped="starting stopping",
    starting="ready degraded failed stopping stopped",
    ready="degraded starting stopping stopped",
    degraded="ready starting stopping stopped failed",
    stopping="stopped failed",
    failed="starting stopping stopped",
)
#: Ray is meant to run.
CLUSTER_UP = frozenset({ClusterState.READY, ClusterState.DEGRADED})


class RunState(StrEnum):
    """Runs and steps say the same words; only a step can be skipped."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


RUN_TRANSITIONS = following(waiting="running failed", running="done failed")
STEP_TRANSITIONS = following(waiting="running skipped failed", running="done failed skipped")
FINISHED = frozenset({RunState.DONE, RunState.SKIPPED, RunState.FAILED})


class JobState(StrEnum):
    STARTING = "starting"  # the row exists; the node may not know of it yet
    RUNNING = "running"
    EXITED = "exited"  # left an exit status on the node
    LOST = "lost"  # its process is gone and left none: killed, or the host was restarted


JOB_TRANSITIONS = following(starting="running exited lost", running="exited lost")
JOB_ACTIVE = frozenset({JobState.STARTING, JobState.RUNNING})
