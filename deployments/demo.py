"""The demo for a terminal: a small model is served on this machine and asked one question, step by step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime

import httpx
from django.contrib.auth.models import User
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from controlplane.terminal import Terminal
from deployments.gateway import keys
from deployments.models import Deployment
from deployments.rollout import stories as rollout
from deployments.rollout.phases import PHASES
from deployments.states import DeploymentState
from nodes.models import Run, Step
from nodes.runs import step_kinds, step_title
from nodes.states import FINISHED, RunState

QUESTION = "What is the capital of France? Answer in one sentence."
#: Seconds to stop the model server and Ray before Quarterdeck itself stops.
STOPPING_TIME = 45.0
_PAUSE = 0.3  # seconds between two looks at the database
#: The gateway learns of a new deployment within seconds; until then it answers with one of these.
_NOT_YET = (httpx.codes.NOT_FOUND, httpx.codes.SERVICE_UNAVAILABLE)
_NOT_YET_SECONDS = 15.0


@dataclass(frozen=True)
class Outcome:
    """What the demo ended with. ``seconds``: prepare (until Ray starts), ready (until it serves), reply."""

    model: str
    reply: str
    seconds: dict[str, float]


def play(by: User, url: str, terminal: Terminal) -> Outcome:
    """Serve the demo model and send it one prompt through the gateway at ``url``. Raises `Problem`."""
    began = timezone.now()
    deployment = rollout.try_demo(by)
    story = _Story(deployment, began, terminal)
    story.follow()
    ready = timezone.now()
    with terminal.step(_("Reply to one prompt")):
        reply = ask(url, deployment.name, by)
    prepared = story.serving_since or ready
    marks = {"prepare": (began, prepared), "ready": (prepared, ready), "reply": (ready, timezone.now())}
    seconds = {name: round((to - since).total_seconds(), 1) for name, (since, to) in marks.items()}
    return Outcome(deployment.name, reply, seconds)


def shut_down() -> None:
    """Stop the demo's model server and Ray. Raises `Problem` when they do not end in time."""
    rollout.shutdown_demo(STOPPING_TIME)


@dataclass
class _Story:
    """What the runs of a deployment do, told step by step as the database learns of it."""

    deployment: Deployment
    since: datetime
    terminal: Terminal
    serving_since: datetime | None = None  # when the first process that stays, Ray or vLLM, was started
    _told: set[int] = field(default_factory=set)

    def follow(self) -> None:
        """Return once the deployment is ready. Raises `Problem` when it will not be."""
        while True:
            self.deployment = self.deployment.fresh()
            runs = self._runs()
            for step in Step.objects.filter(run__in=runs).order_by("run_id", "stage", "pk"):
                self._tell(step)
            if self.deployment.state == DeploymentState.READY:
                self.terminal.rest()
                return
            self._check_there_is_hope(runs)
            time.sleep(_PAUSE)

    def _runs(self) -> list[Run]:
        """Those of the deployment that are new or still go on."""
        current = Q(created_at__gte=self.since) | ~Q(state__in=FINISHED)
        return list(Run.objects.filter(current, about=self.deployment.subject).order_by("pk"))

    def _tell(self, step: Step) -> None:
        if step.pk in self._told or step.state == RunState.WAITING:
            return
        if step.started_at and step_kinds[step.kind].service:
            self.serving_since = min(self.serving_since or step.started_at, step.started_at)
        if step.state == RunState.RUNNING:
            self._tell_progress(step)
            return
        self._told.add(step.pk)
        self.terminal.rest()
        if step.state == RunState.SKIPPED:
            self.terminal.line(f"  – {step_title(step.kind)}" + (f" ({step.reason})" if step.reason else ""))
        else:
            mark = "✗" if step.state == RunState.FAILED else "✓"
            self.terminal.done(str(step_title(step.kind)), _seconds(step), mark)

    def _tell_progress(self, step: Step) -> None:
        serves = self.deployment.replicas.filter(server=step.job_id).first() if step.job_id else None
        phase, percent = (serves.phase, serves.percent) if serves else ("", 0)
        detail = str(PHASES.get(phase, phase) or step.reason)
        self.terminal.working(str(step_title(step.kind)), detail, percent, _seconds(step))

    def _check_there_is_hope(self, runs: list[Run]) -> None:
        failed = next((run for run in runs if run.state == RunState.FAILED), None)
        if self.deployment.state == DeploymentState.FAILED:
            why = self.deployment.reason
            raise Problem(_("The demo model did not start: %s") % why, self._where_to_look())
        if failed is not None and all(run.state in FINISHED for run in runs):
            raise Problem(_("The demo could not be prepared: %s") % failed.reason, self._where_to_look())
        if self.deployment.state in (DeploymentState.STOPPING, DeploymentState.STOPPED):
            raise Problem(_("The demo was stopped before it was ready."), _("Start it again on its page."))

    def _where_to_look(self) -> str:
        return _("Its page has the whole log: %s") % self.deployment.get_absolute_url()


def _seconds(step: Step) -> float:
    if step.started_at is None:
        return 0.0
    return ((step.finished_at or timezone.now()) - step.started_at).total_seconds()


def ask(url: str, model: str, by: User) -> str:
    """The model's answer to one question, through the gateway, with a key just for it. Raises `Problem`."""
    key, plain = keys.create(by, _("bin/up --demo"))
    try:
        answer = _send(f"{url}/v1/chat/completions", model, plain)
    except httpx.HTTPError as error:
        raise Problem(_("The gateway did not answer: %s") % error, _("See var/log/web.log.")) from error
    finally:
        keys.revoke(key)
    if answer.is_error:
        said = {"status": answer.status_code, "text": answer.text[:500]}
        raise Problem(_("The gateway answered %(status)d: %(text)s") % said, _("See var/log/web.log."))
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


def _send(address: str, model: str, key: str) -> httpx.Response:
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": model, "messages": messages, "max_tokens": 64, "temperature": 0}
    deadline = time.monotonic() + _NOT_YET_SECONDS
    while True:
        answer = httpx.post(address, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=120)
        if answer.status_code not in _NOT_YET or time.monotonic() > deadline:
            return answer
        time.sleep(_PAUSE)


def told(outcome: Outcome, url: str, seconds: dict[str, float]) -> str:
    """The end of the story, for the terminal."""
    times = "   ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    return "\n".join(
        [
            f"  › {QUESTION}",
            f"  {outcome.model}: {outcome.reply}",
            "",
            "  " + _("Talk to it: %(url)s/playground/   Call it: %(url)s/v1") % {"url": url},
            "  " + _("It is small and often wrong; it shows that everything works."),
            f"  {times}",
            "",
        ]
    )
