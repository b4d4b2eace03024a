"""From a specification and the nodes as they are to a plan: facts, live memory, the network, and the model's files.

`plan_for` is what the form asks on every pause in typing; `keep` puts its outcome onto the deployment, whose servers
are started from that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from django.utils import translation
from django.utils.translation import gettext as _

from controlplane import streams
from controlplane.problems import Problem
from controlplane.secrets import MASK, Secret
from deployments import accepted, flags
from deployments.commands import checked
from deployments.model_files import model_files
from deployments.models import Deployment, Replica
from deployments.plan import GpuSpec, HostSpec, Layout, ModelConfig, Plan, Wishes, plan
from deployments.plan.hosts import MIB
from deployments.plan.result import Placement
from deployments.spec import Spec
from deployments.states import AT_REST, REPLICA_AT_REST
from nodes import mesh
from nodes.models import Cluster, Node
from nodes.states import NodeState
from nodes.telemetry import store
from nodes.telemetry.sample import INDEX, USED

#: A sample older than this many seconds says nothing of now; the facts do.
_SAMPLE_SECONDS = 30
_LANGUAGES = ("en", "zh-hans")
_NOBODY = -1  # the key of a deployment that is not kept


@dataclass(frozen=True)
class Ground:
    """What a plan stands on: the hosts as they are now. ``taken`` names the deployment that has a GPU already."""

    hosts: tuple[HostSpec, ...]
    gbps: float | None
    live: bool  # the memory is of the last seconds, not of the last look at the server
    taken: Mapping[tuple[str, int], str] = field(default_factory=dict)

    @property
    def free(self) -> tuple[HostSpec, ...]:
        """The hosts, with the GPUs that other deployments have full: Ray gives a GPU to one of them only."""
        return tuple(replace(host, gpus=tuple(self._left(host, gpu) for gpu in host.gpus)) for host in self.hosts)

    def _left(self, host: HostSpec, gpu: GpuSpec) -> GpuSpec:
        taken = (host.name, gpu.index) in self.taken
        return replace(gpu, memory_used_mib=gpu.memory_total_mib) if taken else gpu


@dataclass(frozen=True)
class Planned:
    """The outcome for a page: a plan, or in ``problem`` why there is none. ``looked``: the flags as they are sent."""

    looked: flags.Looked
    ground: Ground
    accepted: flags.Accepted | None  # what the flags were compared with; None: the node's vLLM is being asked
    plan: Plan | None = None
    model: ModelConfig | None = None
    problem: Problem | None = None

    @property
    def layout(self) -> Layout | None:
        return self.plan.layout if self.plan else None

    @property
    def impossible(self) -> Problem | None:
        """The reason not to go on: a flag that is refused, or a wish that does not fit. What is unknown is none."""
        if self.looked.problems:
            return self.looked.problems[0]
        if self.plan is None or self.plan.feasible:
            return None
        near = self.plan.nearest.sentence if self.plan.nearest else ""
        return Problem(" ".join(self.plan.problems), near)


# --- where ---


def place_of(spec: Spec) -> Cluster | Node:
    """The cluster or the node that the specification names. Raises `Problem` where there is none or it is not ready."""
    if spec.cluster:
        cluster = Cluster.objects.filter(name=spec.cluster).first()
        if cluster is None:
            raise Problem(_("There is no cluster %(name)s.") % {"name": spec.cluster}, _known(Cluster.objects))
        return cluster
    node = Node.objects.filter(name=spec.node).first()
    if node is None:
        raise Problem(_("There is no node %(name)s.") % {"name": spec.node}, _known(Node.objects))
    return node


def _known(rows: Any) -> str:
    names = ", ".join(rows.values_list("name", flat=True)[:10])
    return _("There are: %(names)s.") % {"names": names} if names else _("Register a server first.")


def nodes_of(place: Cluster | Node) -> list[Node]:
    """The nodes that a deployment there may use, the head first."""
    if isinstance(place, Node):
        return [place]
    others = place.nodes.exclude(pk=place.head_id).filter(state=NodeState.READY)
    return [place.head, *others]


def ground(nodes: Sequence[Node], besides: Deployment | None = None) -> Ground:
    """The nodes with their memory as it is now. What ``besides`` holds counts as free: it is about to be replaced."""
    samples: dict[int, dict[str, Any]] = {}
    with suppress(streams.RedisError):
        found = store.newest_of_nodes([node.pk for node in nodes])
        samples = {pk: one for pk, one in found.items() if time.time() - one.get("t", 0) < _SAMPLE_SECONDS}
    own = _held(besides) if besides else {}
    hosts = tuple(_host(node, samples.get(node.pk, {}), own) for node in nodes)
    return Ground(hosts, mesh.network_gbps(nodes), len(samples) == len(nodes), _taken(nodes, besides))


def _host(node: Node, sample: Mapping[str, Any], own: Mapping[tuple[str, int], int]) -> HostSpec:
    """A node with the newest figures there are."""
    facts = node.facts
    host = HostSpec.from_facts(node.name, facts)
    used = {row[INDEX]: row[USED] for row in sample.get("gpus", ()) if row[USED] is not None}
    held = {gpu.index: int(used.get(gpu.index, gpu.memory_used_mib)) for gpu in host.gpus}
    others = {index: max(0, size - own.get((node.name, index), 0)) for index, size in held.items()}
    gpus = tuple(replace(gpu, memory_used_mib=others[gpu.index]) for gpu in host.gpus)
    busy, total = sample.get("mem", (None, None))
    if busy is not None and total is not None:
        return replace(host, gpus=gpus, memory_available_mib=max(0, total - busy) // MIB)
    return replace(host, gpus=gpus)


def _taken(nodes: Sequence[Node], besides: Deployment | None) -> dict[tuple[str, int], str]:
    """GPUs that servers of other deployments were given and have not given back."""
    names = {node.name for node in nodes}
    running = Replica.objects.exclude(state__in=REPLICA_AT_REST).select_related("deployment")
    return {
        (place["host"], place["gpu"]): one.deployment.name
        for one in running
        for place in one.placement
        if one.deployment != besides and place["host"] in names and place["gpu"] is not None
    }


def _held(deployment: Deployment) -> dict[tuple[str, int], int]:
    """GPU → MiB that the deployment's plan gave it there, if it runs."""
    if deployment.state in AT_REST:
        return {}
    placed = stored_placement(deployment.plan)
    return {
        (place.host, place.gpu): (place.weights_bytes + place.kv_bytes + place.overhead_bytes) // MIB
        for place in placed
        if place.gpu is not None
    }


# --- the plan ---


def plan_for(spec: Spec, besides: Deployment | None = None) -> Planned:
    """Plan a specification on its place as it is now. Raises `Problem` only where the place itself is not there."""
    nodes = nodes_of(place_of(spec))
    stands = ground(nodes, besides)
    known = accepted.of(nodes[0])
    looked = flags.looked_at(spec.options, known)
    try:
        model = model_files(spec.model, nodes[0]).model(looked.options.get("hf-overrides"))
        asked = wishes(spec, looked.options)
        found = Planned(looked, stands, known, _within(spec, model, stands, asked), model)
        if besides is None or besides.state in AT_REST:
            return found
        # Beside the servers that run, where there is room for the same: then they can be replaced without a gap.
        others = ground(nodes)
        beside = Planned(looked, others, known, _within(spec, model, others, asked), model)
    except Problem as problem:
        return Planned(looked, stands, known, problem=problem)
    return beside if beside.layout and beside.layout == found.layout else found


def _within(spec: Spec, model: ModelConfig, stands: Ground, asked: Wishes) -> Plan:
    """The plan; for processes without Ray one in which no copy leaves its host."""
    outcome = plan(model, stands.free, asked, stands.gbps)
    if spec.executor != Deployment.Executor.MP or not _crosses(outcome):
        return _with_executor(outcome, spec)
    alone = (plan(model, [host], asked, stands.gbps) for host in stands.free)
    best = max(alone, key=lambda one: (one.feasible, one.tokens_per_second, one.kv_tokens))
    if best.feasible:
        return _with_executor(best, spec)
    said = _("No single host holds a copy, and processes without Ray stay on one host.")
    return Plan(problems=(said, *best.problems), nearest=best.nearest, alternatives=outcome.alternatives)


def _with_executor(outcome: Plan, spec: Spec) -> Plan:
    """The plan with the executor that its servers are started with: Ray counts the GPUs of one host as well."""
    if "distributed-executor-backend" not in outcome.flags:
        return outcome
    return replace(outcome, flags={**outcome.flags, "distributed-executor-backend": executor_for(spec, outcome)})


def _crosses(outcome: Plan) -> bool:
    hosts: dict[int, set[str]] = {}
    for place in outcome.placement:
        hosts.setdefault(place.replica, set()).add(place.host)
    return any(len(names) > 1 for names in hosts.values())


def wishes(spec: Spec, options: Mapping[str, Any]) -> Wishes:
    """The specification in the planner's words: its options, and the number of copies."""
    plain = {name: value for name, value in options.items() if isinstance(value, str | int | float | bool)}
    plain.pop("data-parallel-size", None)  # vLLM's own, within one server; copies are servers
    return Wishes.from_flags(plain | ({"data-parallel-size": spec.copies} if spec.copies else {}))


def spec_of(deployment: Deployment) -> Spec:
    """The specification as it was last written; of a deployment from before there were revisions, as it is."""
    latest = deployment.revisions.first()
    if latest is not None:
        return Spec.from_dict(latest.spec)
    cluster = deployment.cluster
    alone = cluster.nodes.count() <= 1
    return Spec(
        name=deployment.name,
        model=deployment.model,
        cluster="" if alone else cluster.name,
        node=cluster.head.name if alone else "",
        port=deployment.port,
        options=checked(deployment.options),
    )


def renew(deployment: Deployment) -> None:
    """Plan once more before a start, with memory and GPUs as they are now. Raises `Problem` where it does not fit now.

    Where nothing can be planned, since a node is away or its memory is not known, what was planned stays.
    """
    spec = spec_of(deployment)
    planned = plan_for(spec, deployment)
    if deployment.plan and planned.impossible:
        raise planned.impossible
    if planned.layout:
        values = kept(planned, spec)
        Deployment.objects.filter(pk=deployment.pk).update(**values)
        for name, value in values.items():
            setattr(deployment, name, value)


def kept(planned: Planned, spec: Spec) -> dict[str, Any]:
    """The fields of a deployment that come from its plan."""
    return {
        "executor": executor_for(spec, planned.plan),
        "copies": _copies(spec, planned),
        "plan": stored(planned, spec),
    }


def draft_of(spec: Spec, planned: Planned, besides: Deployment | None = None) -> Deployment:
    """The deployment that the specification with its plan would make, or make of ``besides``; not kept."""
    place = place_of(spec)
    head = place if isinstance(place, Node) else place.head
    cluster = place if isinstance(place, Cluster) else place.cluster or Cluster(name=head.name, head=head)
    return Deployment(
        pk=besides.pk if besides else _NOBODY,
        name=spec.name,
        model=spec.model,
        cluster=cluster,
        executor=executor_for(spec, planned.plan),
        copies=_copies(spec, planned),
        plan=planned.plan.to_json() if planned.plan and planned.layout else {},
        port=spec.port or (besides.port if besides else 0),
        options=dict(planned.looked.options),
        api_key=Secret(MASK),
    )


def _copies(spec: Spec, planned: Planned) -> int:
    return spec.copies or (planned.layout.replicas if planned.layout else 1)


def executor_for(spec: Spec, outcome: Plan | None) -> str:
    """What starts the workers: as wished; else Ray, which spans hosts and keeps count of GPUs.

    A host without GPUs has one worker through Ray, so several of them on one need processes.
    """
    first = [place for place in outcome.placement if place.replica == 0] if outcome else []
    crowded = len(first) > len({place.host for place in first}) and all(place.gpu is None for place in first)
    return spec.executor or str((Deployment.Executor.MP if crowded else Deployment.Executor.RAY).value)


# --- what is kept ---


def stored(planned: Planned, spec: Spec) -> dict[str, Any]:
    """The plan as a deployment keeps it: as `manage.py plan --json` prints it, and more of each rank.

    Empty where nothing could be planned. The reasons are kept in every language.
    """
    outcome = planned.plan
    if outcome is None or not outcome.feasible:
        return {}
    shape = outcome.to_json()
    del shape["alternatives"], shape["problems"]
    shape["placement"] = [_placed(place) for place in outcome.placement]
    shape["max_model_len"], shape["tokens_per_second"] = outcome.max_model_len, outcome.tokens_per_second
    shape["reasons"] = {}
    assert planned.model is not None
    for language in _LANGUAGES:
        with translation.override(language):
            again = _within(spec, planned.model, planned.ground, wishes(spec, planned.looked.options))
        shape["reasons"][language] = list(again.reasons)
    return shape


def _placed(place: Placement) -> dict[str, Any]:
    more = ("overhead_bytes", "replica", "stage")
    return {**place.to_json(), **{name: getattr(place, name) for name in more}, "layers": list(place.layers)}


def stored_placement(kept: Mapping[str, Any]) -> list[Placement]:
    """The ranks of a plan that a deployment keeps."""
    return [Placement(**{**place, "layers": tuple(place["layers"])}) for place in _complete(kept.get("placement", ()))]


def _complete(places: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [place for place in places if set(place) == set(Placement.__dataclass_fields__)]
