"""The story engine: a run is stages of steps over nodes; `advance` takes the next step, again and again the same.

Level-triggered: the database has what is wanted and what was last seen, `advance` compares and acts. It is called
when something happened (a job ended, a run was made) and once a second besides, so a lost call only delays. Every
change of state is a compare-and-set, and starting a job is idempotent on the node; so any number of workers may call
it, and any may be killed in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple, cast

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import get_language, override
from django.utils.translation import gettext as _

from controlplane import streams
from controlplane.problems import Problem
from nodes import endings, logs
from nodes.endings import last_words as last_words
from nodes.hosts import shared_host
from nodes.models import Job, Node, Run, Step
from nodes.recipes import Satisfied
from nodes.remote import job as remote_job
from nodes.remote.command import Command
from nodes.remote.errors import HostProblem
from nodes.states import FINISHED, JOB_ACTIVE, JobState, RunState

log = logging.getLogger(__name__)

#: How long a step waits for a host that cannot be reached before it fails with that reason.
PATIENCE = timedelta(seconds=60)
#: Steps of a stage that are worked on at the same time: those on mute hosts, seconds each, hold up no others.
AT_ONCE = 64


class Done(NamedTuple):
    """The step is finished; ``detail`` is what the page says of it."""

    detail: str = ""


class Waiting(NamedTuple):
    """The step goes on; look again. ``detail`` is what the page says meanwhile."""

    detail: str = ""


class Later(NamedTuple):
    """Nothing was begun yet, since something has to be over first; ask `begin` again soon."""

    detail: str = ""


Begun = Command | Satisfied | Done | Waiting | Later


@dataclass(frozen=True)
class StepKind:
    """What a step does. All three functions may raise `Problem`: the step fails with it.

    ``begin`` decides from facts: a `Command` becomes a job, `Satisfied` skips, `Done` was quick enough to do at once,
    `Waiting` asks to be probed, `Later` to begin again. ``probe`` looks at a running step that is not simply over when
    its job is.
    ``service``: the job is meant to run on; the step is over when ``probe`` says so, and has failed if the job ends.
    """

    name: str
    title: Promise | str
    begin: Callable[[Step], Begun]
    probe: Callable[[Step], Done | Waiting] | None = None
    service: bool = False
    explain: Callable[[Step], str] | None = None  # why its job failed, better than the log's last line
    attach: Callable[[Step, Job], bool] | None = None  # note the job on what it serves; False: another came first


@dataclass(frozen=True)
class Story:
    """A kind of run: its stages (each a list of step kind and node), and what its end means for its subject."""

    name: str
    title: Promise | str
    settle: Callable[[Run, bool, str], None]


step_kinds: dict[str, StepKind] = {}
stories: dict[str, Story] = {}


def register(*kinds: StepKind) -> None:
    step_kinds.update({kind.name: kind for kind in kinds})


def register_story(story: Story) -> None:
    stories[story.name] = story


def step_title(kind: str) -> Promise | str:
    return step_kinds[kind].title


def run_title(run: Run) -> Promise | str:
    return stories[run.story].title


#: Step kind and node; where one node has several of a kind, also the subject that the step is about ("replica:3").
Planned = tuple[str, Node] | tuple[str, Node, str]
Stages = Sequence[Sequence[Planned]]


def start(story: str, about: str, stages: Stages, by: User | None, **options: Any) -> Run:
    """Create the run with all its steps and have it advanced. Raises `Problem` if its subject has one unfinished."""
    try:
        with transaction.atomic():
            options["language"] = get_language() or settings.LANGUAGE_CODE
            run = Run.objects.create(story=story, about=about, options=options, created_by=by)
            for number, stage in enumerate(stages):
                for kind, node, *subject in stage:
                    Step.objects.create(run=run, stage=number, kind=kind, node=node, about="".join(subject))
            transaction.on_commit(lambda: queue(run.pk))
    except IntegrityError as error:
        raise Problem(
            _("Something else is already being done here."), _("Wait for it to end, then try again.")) from error
    return run


def cancel(run: Run, reason: str) -> None:
    """Give a run up: nothing more of it begins, and what its steps have running is stopped (watch sees to that)."""
    now = timezone.now()
    for step in run.steps.exclude(state__in=FINISHED):
        begun = step.state == RunState.RUNNING
        step.move(RunState.FAILED if begun else RunState.SKIPPED, reason, finished_at=now)
    run.move(RunState.RUNNING)
    run.move(RunState.FAILED, reason, finished_at=now)


def orphans() -> QuerySet[Job]:
    """Jobs that still run although their step was given up; somebody should end them."""
    return Job.objects.filter(state__in=JOB_ACTIVE, service=False, step__state=RunState.FAILED)


def end_job(job: Job, how: Literal["TERM", "KILL"] = "KILL") -> int:
    """Signal all processes of a job; returns how many there were. Raises `HostProblem`."""
    return remote_job.signal(shared_host(job.node), logs.place(job), how)


def queue(run_id: int) -> None:
    """Have a worker advance the run soon. A broker that is away only delays it: watch asks again."""
    from nodes.tasks import advance_run, send

    send(advance_run, run_id)


def poke_watch() -> None:
    """Have watch follow a new job at once."""
    from nodes import tasks

    tasks.poke_watch()


def advance(run_id: int) -> None:
    """Take every step of the run that can be taken now. What it says is in the language of who started the run."""
    run = Run.objects.get(pk=run_id)
    with override(run.options.get("language")):
        _advance(run)


def _advance(run: Run) -> None:
    run.move(RunState.RUNNING)
    while run.fresh().state == RunState.RUNNING:
        stage = current_stage(run)
        if stage is None:
            _settle(run)
            return
        before = [step.state for step in stage]
        _each(_work, stage)
        if [step.fresh().state for step in stage] == before:
            return


def current_stage(run: Run) -> list[Step] | None:
    """The steps of the first unfinished stage; None when all is over or an earlier stage has failed."""
    steps = list(run.steps.select_related("node", "job"))
    for number in sorted({step.stage for step in steps}):
        stage = [step for step in steps if step.stage == number]
        if any(step.state not in FINISHED for step in stage):
            return stage
        if any(step.state == RunState.FAILED for step in stage):
            return None
    return None


def _settle(run: Run) -> None:
    failed = run.steps.filter(state=RunState.FAILED).select_related("node").first()
    now = timezone.now()
    reason = _failure(failed) if failed else ""
    if failed is not None:
        for step in run.steps.filter(state=RunState.WAITING):
            step.move(RunState.SKIPPED, _("not reached"), finished_at=now)
    with transaction.atomic():  # both or neither: a run that is over and a subject that does not know it would stay so
        if run.move(RunState.FAILED if failed else RunState.DONE, reason, finished_at=now):
            stories[run.story].settle(run, failed is None, reason)


def _failure(step: Step) -> str:
    return _("%(step)s on %(node)s: %(reason)s") % {
        "step": step_title(step.kind), "node": step.node.name, "reason": step.reason}


def _each(work: Callable[[Step], None], steps: list[Step]) -> None:
    """Work on the steps of a stage at the same time, one thread a node at most."""
    if len(steps) == 1:
        work(steps[0])
        return

    def with_own_connection(step: Step) -> None:
        try:
            work(step)
        finally:
            connection.close()

    with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(steps))) as pool:
        list(pool.map(with_own_connection, steps))


def _work(step: Step) -> None:
    """Begin, look at, or leave one step. A problem of the host is waited out for a while; any other fails the step."""
    try:
        if step.state == RunState.WAITING:
            _begin(step)
        elif step.state == RunState.RUNNING:
            _look(step)
    except HostProblem as error:
        if not error.passing or _troubled(step) > PATIENCE.total_seconds():
            _finish(step, RunState.FAILED, endings.full_disk(step.node, str(error)) or error.told)
        else:
            log.warning("run %s: %s waits: %s", step.run_id, step, error)
            told = {"why": error.what, "seconds": PATIENCE.total_seconds()}
            _say(step, _("%(why)s It is tried again for up to %(seconds)d s.") % told)
    except Problem as error:
        _finish(step, RunState.FAILED, error.told)
    except Exception as error:
        log.exception("run %s: %s", step.run_id, step)
        if _troubled(step) > PATIENCE.total_seconds():
            _finish(step, RunState.FAILED, _unexpected(error))
    else:
        if streams.client().delete(f"trouble:{step.pk}"):  # what was said of it is over, unless something else was said
            Step.objects.filter(pk=step.pk, reason=step.reason).exclude(state__in=FINISHED).update(reason="")


def _troubled(step: Step) -> float:
    """Seconds since the first failure of a step that has not worked since."""
    key, now = f"trouble:{step.pk}", time.time()
    streams.client().set(key, now, nx=True, ex=3600)
    return now - float(cast(bytes, streams.client().get(key)) or now)


def _unexpected(error: Exception) -> str:
    what = _("This step met something nobody expected: %(kind)s.") % {"kind": type(error).__name__}
    return f"{what}\n" + _("The log of the worker has the details; start again once it is mended.")


def _begin(step: Step) -> None:
    kind = step_kinds[step.kind]
    if Job.objects.filter(node=step.node, name=kind.name, service=False, state__in=JOB_ACTIVE).exists():
        return  # another run does the same on this node: two would trip over each other, and soon it is satisfied
    step.node.refresh_from_db()
    begun = kind.begin(step)
    now = timezone.now()
    match begun:
        case Satisfied():
            step.move(RunState.SKIPPED, begun.detail, started_at=now, finished_at=now)
        case Done():
            step.move(RunState.RUNNING, started_at=now)
            _finish(step, RunState.DONE, begun.detail)
        case Waiting():
            step.move(RunState.RUNNING, begun.detail, started_at=now)
        case Later() if begun.detail != step.reason:
            _say(step, begun.detail)
        case Command() if _claim(step, kind, begun):
            _launch(step, begun)


def _claim(step: Step, kind: StepKind, command: Command) -> bool:
    """Make the job's row and take the step, both or neither: only one worker gets to."""
    with transaction.atomic():
        job = Job(node=step.node, name=kind.name, service=kind.service, shown_command=remote_job.shown(command))
        job.save()
        taken = step.move(RunState.RUNNING, started_at=timezone.now(), job=job)
        if taken and (kind.attach is None or kind.attach(step, job)):
            return True
        transaction.set_rollback(True)
    return False


def _launch(step: Step, command: Command) -> None:
    job = step.job
    assert job is not None
    remote_job.start(shared_host(step.node), logs.place(job), command)
    job.move(JobState.RUNNING)
    poke_watch()


def _look(step: Step) -> None:
    kind, job = step_kinds[step.kind], step.job
    if job is None or (kind.service and job.state == JobState.RUNNING):
        _probe(step, kind)
    elif job.state == JobState.STARTING:
        _start_again(step, kind)
    elif job.state not in JOB_ACTIVE:
        _conclude(step, kind, job)


def _start_again(step: Step, kind: StepKind) -> None:
    """A worker died between taking the step and starting its job, or is just doing it: starting twice is once."""
    begun = kind.begin(step)
    if isinstance(begun, Command):
        _launch(step, begun)
    elif not isinstance(begun, Later):
        _finish(step, RunState.DONE)


def _probe(step: Step, kind: StepKind) -> None:
    assert kind.probe is not None, f"{kind.name} has nothing to look at"
    found = kind.probe(step)
    if isinstance(found, Done):
        _finish(step, RunState.DONE, found.detail)
    elif found.detail != step.reason:
        _say(step, found.detail)


def _say(step: Step, detail: str) -> None:
    """What the page says of a step meanwhile."""
    Step.objects.filter(pk=step.pk, state=step.state).update(reason=detail)
    step.poke()


def _conclude(step: Step, kind: StepKind, job: Job) -> None:
    if job.state == JobState.EXITED and job.exit_status == 0 and not kind.service:
        _finish(step, RunState.DONE)
    else:
        full = endings.full_disk(step.node, logs.tail(job))
        _finish(step, RunState.FAILED, full or (kind.explain(step) if kind.explain else last_words(job)))


def _finish(step: Step, state: RunState, reason: str = "") -> None:
    if state == RunState.FAILED and step.job is not None:
        # Its launch may never have arrived; a job that nobody waits for must not keep others of its kind waiting.
        step.job.move(JobState.LOST, only_from=JobState.STARTING, ended_at=timezone.now(), log_size=0)
    if step.state == RunState.WAITING and state == RunState.FAILED:
        step.move(state, reason, started_at=timezone.now(), finished_at=timezone.now())
    else:
        step.move(state, reason, finished_at=timezone.now())
