"""What the steps of a rollout and of a stop do on a node. Recipes and commands are pure, the engine is `nodes.runs`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import httpx
from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane import streams
from controlplane.problems import Problem
from deployments import commands, diagnosis
from deployments.models import Deployment
from deployments.phases import PHASES, STARTED, PhaseReader, Progress
from deployments.states import DeploymentState
from deployments.upstream import base_url, inner_address
from nodes import logs, preparation, runs
from nodes.hosts import shared_host
from nodes.models import Job, Node, Step
from nodes.recipes import Satisfied, models, ray
from nodes.remote.command import Command
from nodes.remote.host import ask
from nodes.runs import Done, StepKind, Waiting
from nodes.states import JOB_ACTIVE

#: After this long a server that was asked to end is killed.
GRACE = timedelta(seconds=20)
#: How long Ray may take to answer before its start has failed.
RAY_PATIENCE = timedelta(seconds=90)
#: Bytes of a server's log in which its start is looked for.
_LONGEST_START = 4 << 20
_PROMPT = "The capital of France is"


def deployment_of(step: Step) -> Deployment:
    """The deployment that the step's run is about."""
    return Deployment.objects.select_related("cluster__head", "server").get(pk=step.run.about.partition(":")[2])


# --- model, room, Ray --------------------------------------------------------------------------------------------


def _model(step: Step) -> Command | Satisfied:
    deployment = deployment_of(step)
    facts, site = step.node.facts, preparation.site(step.node)
    if deployment.model == Deployment.DEMO:
        return models.demo_model(facts, site)
    return models.model_present(deployment.model)(facts, site)


def _room(step: Step) -> Done:
    deployment = deployment_of(step)
    facts = preparation.gather(step.node)
    if deployment.port in facts.listening:
        raise Problem(
            _("Port %(port)d on %(node)s is in use by another program.")
            % {"port": deployment.port, "node": step.node.name},
            _("Give the deployment another port, or end what uses this one: ss -ltnp shows it."),
        )
    plan = ray.port_plan(settings.PORT_BASE)
    busy = sorted(set(plan.fixed) & set(facts.listening))
    if busy and not _ray_runs(step.node):
        raise Problem(
            _("Port %(port)d on %(node)s, which Ray needs, is in use by another program.")
            % {"port": busy[0], "node": step.node.name},
            _("End what uses it (ss -ltnp shows it), or move all of Ray's ports with PORT_BASE."),
        )
    return Done(_("%(free).1f GiB of memory available") % {"free": facts.memory_available / 2**30})


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


# --- serve -------------------------------------------------------------------------------------------------------


def _serve(step: Step) -> Command:
    deployment, node = deployment_of(step), step.node
    site = preparation.site(node)
    model = models.demo_path(site) if deployment.model == Deployment.DEMO else deployment.model
    return commands.serve(
        site=site, facts=node.facts, plan=ray.port_plan(settings.PORT_BASE), address=inner_address(node),
        name=deployment.name, model=model, port=deployment.port, api_key=deployment.api_key,
        options=deployment.options)


def _attach_server(step: Step, job: Job) -> None:
    Deployment.objects.filter(pk=deployment_of(step).pk).update(server=job)


def _serve_probe(step: Step) -> Done | Waiting:
    """Read the start's phase from the log; over once the server lists the model."""
    deployment, job = deployment_of(step), step.job
    if job is None:
        raise Problem(_("The server's job is not known any more."), _("Start the deployment again."))
    progress = _progress(chunk.data for chunk in streams.read(streams.log_key(job.pk), 0))
    if _answers(deployment):
        # Whatever it measured stands in its log by now; the stream may be a moment behind the node.
        _note(deployment, _progress([logs.read(job, 0, _LONGEST_START).data]))
        return Done(_("answers on %(url)s") % {"url": base_url(deployment)})
    _note(deployment, progress)
    if progress.percent >= STARTED and step.node.kind == Node.Kind.SSH:
        return _through_ssh(deployment)
    return Waiting(str(PHASES.get(progress.phase, PHASES["starting"])))


def _progress(pieces: Iterable[bytes]) -> Progress:
    reader = PhaseReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.progress


def _note(deployment: Deployment, progress: Progress) -> None:
    new = {"phase": progress.phase, "percent": progress.percent, "measured": dict(progress.measured)}
    if new != {name: getattr(deployment, name) for name in new}:
        Deployment.objects.filter(pk=deployment.pk).update(**new)
        deployment.poke()


def _through_ssh(deployment: Deployment) -> Done | Waiting:
    """The server says that it has started and does not answer here: a firewall, or no route but SSH's."""
    deployment.tunnel = True
    if not _answers(deployment):
        return Waiting(_("started; waiting for an answer, directly or through SSH"))
    Deployment.objects.filter(pk=deployment.pk).update(tunnel=True)
    return Done(_("answers through SSH only: the port is not reachable from here"))


def _answers(deployment: Deployment) -> bool:
    try:
        answer = _ask(deployment, "GET", "/v1/models", timeout=3)
        return answer.status_code == 200 and deployment.name in {card["id"] for card in answer.json()["data"]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError):  # nobody, or something else that speaks HTTP
        return False


def _ask(deployment: Deployment, method: str, path: str, timeout: float, json: Any = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {deployment.api_key.reveal()}"}
    with httpx.Client(base_url=base_url(deployment), timeout=timeout, trust_env=False) as client:
        return client.request(method, path, headers=headers, json=json)


def _explain(step: Step) -> str:
    assert step.job is not None
    found = diagnosis.match(logs.tail(step.job, 1 << 20))
    return f"{found.cause}\n{found.fix}" if found else runs.last_words(step.job)


def _verify(step: Step) -> Done:
    """One real prompt: /health and /v1/models answer before it is known that the model can generate."""
    deployment = deployment_of(step)
    prompt = {"model": deployment.name, "prompt": _PROMPT, "max_tokens": 8, "temperature": 0}
    try:
        answer = _ask(deployment, "POST", "/v1/completions", timeout=60, json=prompt)
    except httpx.TransportError as error:
        raise Problem(
            _("The server started but did not answer a prompt: %(error)s.") % {"error": error or type(error).__name__},
            _("Its log says what happened to the engine."),
        ) from error
    if answer.status_code != 200:
        raise Problem(
            _("The server started but refused a prompt with status %(status)d: %(text)s")
            % {"status": answer.status_code, "text": answer.text[:300]},
            _("Its log says more."),
        )
    _note_chat_template(deployment)
    return Done(_("answered a prompt in %(seconds).1f s") % {"seconds": answer.elapsed.total_seconds()})


def _note_chat_template(deployment: Deployment) -> None:
    """A base model has no chat template and refuses to chat; the playground asks it for completions instead."""
    question = {"model": deployment.name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    try:
        answer = _ask(deployment, "POST", "/v1/chat/completions", timeout=60, json=question)
    except httpx.TransportError:
        return
    refused = answer.status_code == 400 and "chat template" in answer.text
    if refused or answer.status_code == 200:
        measured = {**deployment.fresh().measured, "chat_template": not refused}
        Deployment.objects.filter(pk=deployment.pk).update(measured=measured)


# --- stop --------------------------------------------------------------------------------------------------------


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
    StepKind("model", gettext_lazy("Model"), _model),
    StepKind("room", gettext_lazy("Ports and memory"), _room),
    StepKind("ray", gettext_lazy("Ray"), _ray, _ray_probe, service=True, attach=_attach_ray),
    StepKind("serve", gettext_lazy("vLLM server"), _serve, _serve_probe, True, _explain, _attach_server),
    StepKind("verify", gettext_lazy("A real prompt"), _verify),
    StepKind("stop-server", gettext_lazy("Stop the model server"), lambda step: _end(deployment_of(step).server),
             lambda step: _ended(step, deployment_of(step).server)),
    StepKind("stop-ray", gettext_lazy("Stop Ray"), _stop_ray, _ray_ended),
)
