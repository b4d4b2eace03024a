"""What the steps of a rollout do for each replica: its server is started, followed until it answers, proved."""

from __future__ import annotations

import time

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane import streams
from controlplane.problems import Problem
from deployments import commands, engine
from deployments.models import Replica
from deployments.rollout import causes, placing
from deployments.rollout.model_steps import directory
from deployments.rollout.phases import OPENING, PHASES, STARTED, Progress
from deployments.rollout.placing import FRESH
from deployments.rollout.steps import DEFAULT_SHARE, deployment_of
from deployments.states import ReplicaState
from deployments.upstream import base_url, inner_address
from nodes import logs, preparation, runs
from nodes.clusters import steps as clusters_steps
from nodes.clusters.address import names_by_address
from nodes.models import Job, Node, Step
from nodes.remote.command import Command
from nodes.runs import Done, StepKind, Waiting

#: Bytes of a server's log in which its start is looked for.
_LONGEST_START = 4 << 20
#: Seconds for which a server that opens its endpoint is asked.
_LAST_SECOND = 1.0


def replica_of(step: Step) -> Replica:
    """The replica that the step is about."""
    all_of_it = deployment_of(step).replicas.select_related("deployment", "node", "server")
    number = step.about.partition(":")[2]
    return all_of_it.get(pk=number) if number else all_of_it[0]


def _own_gpus(step: Step) -> Done:
    """The GPUs that the server was given have the memory that vLLM asks for: it would find out after a minute."""
    replica, facts = replica_of(step), step.node.facts
    share = float(replica.spec["options"].get("gpu-memory-utilization", DEFAULT_SHARE))
    mine = [gpu for gpu in facts.gpus if gpu.index in replica.gpus]
    for gpu in mine:
        free, wanted = gpu.memory_total_mib - gpu.memory_used_mib, gpu.memory_total_mib * share
        if free < wanted:
            raise Problem(
                _("GPU %(gpu)d of %(node)s has %(free).1f GiB free, and vLLM asks for %(wanted).1f GiB.")
                % {"gpu": gpu.index, "node": step.node.name, "free": free / 1024, "wanted": wanted / 1024},
                _("End what uses it (nvidia-smi shows it), or lower gpu-memory-utilization."),
            )
    return Done(", ".join(f"GPU {gpu.index}" for gpu in mine))


def command_of(replica: Replica) -> Command:
    """What starts the replica's server on its node. Raises `Problem` for options that cannot be passed on."""
    node = replica.node
    site, spec = preparation.site(node), replica.spec
    model = directory(spec["model"], site)
    plan = clusters_steps.plan_of(replica.deployment.cluster)
    return commands.serve(
        site=site, facts=node.facts, plan=plan, address=inner_address(node),
        name=replica.deployment.name, model=model, port=replica.port, api_key=replica.deployment.api_key,
        options=spec["options"], workers=_workers(replica))


def _workers(replica: Replica) -> commands.Workers:
    executor = replica.spec.get("executor", "ray")
    gpus = replica.gpus if executor == "mp" else ()
    return commands.Workers(executor, gpus, replica.spec.get("environment", {}))


def _attach_server(step: Step, job: Job) -> bool:
    return replica_of(step).move(ReplicaState.ROLLING_OUT, **{**FRESH, "server": job})


def _serve_probe(step: Step) -> Done | Waiting:
    """Read the start's phase from the log; over once the server lists the model."""
    replica, job = replica_of(step), step.job
    if job is None:
        raise Problem(_("The server's job is not known any more."), _("Start the deployment again."))
    progress = causes.progress(chunk.data for chunk in streams.read(streams.log_key(job.pk), 0))
    if _answers(replica, progress):
        # Whatever it measured stands in its log by now; the stream may be a moment behind the node.
        _note(replica, causes.progress([logs.read(job, 0, _LONGEST_START).data]))
        Replica.objects.filter(pk=replica.pk).update(placement=placing.seated(replica.fresh(), names_by_address()))
        return Done(_("answers on %(url)s") % {"url": base_url(replica)})
    _note(replica, progress)
    if progress.percent >= STARTED and step.node.kind == Node.Kind.SSH:
        return _through_ssh(replica)
    causes.check_goes_on(job, progress)
    return Waiting(str(PHASES.get(progress.phase, PHASES["starting"])))


def _answers(replica: Replica, progress: Progress) -> bool:
    """Whether the server answers. One that is about to is asked again at once: watch looks but once a second."""
    end = time.monotonic() + (_LAST_SECOND if progress.percent >= OPENING else 0)
    while not engine.answers(replica):
        if time.monotonic() >= end:
            return False
        time.sleep(_LAST_SECOND / 10)
    return True


def _note(replica: Replica, progress: Progress) -> None:
    new = {"phase": progress.phase, "percent": progress.percent, "measured": dict(progress.measured)}
    if new != {name: getattr(replica, name) for name in new}:
        Replica.objects.filter(pk=replica.pk).update(**new)
        replica.deployment.poke()


def _through_ssh(replica: Replica) -> Done | Waiting:
    """The server says that it has started and does not answer here: a firewall, or no route but SSH's."""
    replica.tunnel = True
    if not engine.answers(replica):
        return Waiting(_("started; waiting for an answer, directly or through SSH"))
    Replica.objects.filter(pk=replica.pk).update(tunnel=True)
    return Done(_("answers through SSH only: the port is not reachable from here"))


def _explain(step: Step) -> str:
    assert step.job is not None
    return causes.of_start(step.job)


def _verify(step: Step) -> Done:
    replica = replica_of(step)
    seconds = engine.prove(replica)
    chats = engine.chats(replica)
    if chats is not None:
        Replica.objects.filter(pk=replica.pk).update(measured={**replica.measured, "chat_template": chats})
    return Done(_("answered a prompt in %(seconds).1f s") % {"seconds": seconds})


runs.register(
    StepKind("own-gpus", gettext_lazy("GPU memory"), _own_gpus),
    StepKind("serve", gettext_lazy("vLLM server"), lambda step: command_of(replica_of(step)), _serve_probe, True,
             _explain, _attach_server),
    StepKind("verify", gettext_lazy("A real prompt"), _verify),
)
