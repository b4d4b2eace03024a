"""Room for Ray on a node: its ports are free, and of earlier sessions nothing runs on.

What our own ended jobs left is ended without asking; other people's Ray only by a step that a person asked for.
"""

from __future__ import annotations

import uuid
from datetime import timedelta

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from nodes import preparation, runs
from nodes.clusters.steps import cluster_of, plan_of, running
from nodes.facts import Facts, Process
from nodes.hosts import shared_host
from nodes.models import Job, Node, Step
from nodes.recipes import ray
from nodes.runs import Done, StepKind
from nodes.states import JOB_ACTIVE

#: For this long the run's own look at a node says what is there now.
_FRESH = timedelta(seconds=10)


def _room(step: Step) -> Done:
    facts = make_room(step)
    return Done(_("%(free).1f GiB of memory available") % {"free": facts.memory_available / 2**30})


def make_room(step: Step) -> Facts:
    """Look at the node, end what earlier sessions of our own left there, and see that Ray's ports are free.

    What the run itself saw a moment ago is as good as another look: that takes a second, and on GPU hosts more.

    Other people's Ray is left alone, and in the way only where it has the ports; then `Problem`.
    """
    node = step.node
    facts = node.facts if preparation.seen_in(step) and _lately(node) else preparation.gather(node)
    if end_own_leftovers(facts):
        facts = preparation.gather(node)
    busy = sorted(set(plan_of(cluster_of(node)).fixed) & set(facts.listening))
    if busy and not running(node):
        raise Problem(
            _("Port %(port)d on %(node)s, which Ray needs, is in use by another program.")
            % {"port": busy[0], "node": node.name},
            _("End what uses it (ss -ltnp shows it), or move all of Ray's ports with PORT_BASE."),
        )
    return facts


def _lately(node: Node) -> bool:
    return node.facts_at is not None and timezone.now() - node.facts_at < _FRESH


def end_own_leftovers(facts: Facts) -> int:
    """End Ray and vLLM of jobs that Quarterdeck itself once started and calls ended; returns how many jobs."""
    found = own_leftovers(facts)
    for job in found:
        runs.end_job(job, "KILL")
    return len(found)


def own_leftovers(facts: Facts) -> list[Job]:
    """The ended jobs of ours that still have processes on a node with these facts."""
    marks = {process.job for process in facts.leftovers if _is_id(process.job)}
    return list(Job.objects.filter(pk__in=marks).exclude(state__in=JOB_ACTIVE).select_related("node"))


def foreign_leftovers(facts: Facts) -> list[Process]:
    """Ray and vLLM that some other program or person started: nothing of it is ended without being told to."""
    marks = {process.job for process in facts.leftovers if _is_id(process.job)}
    ours = {str(pk) for pk in Job.objects.filter(pk__in=marks).values_list("pk", flat=True)}
    return [process for process in facts.leftovers if process.job not in ours]


def _end_foreign(step: Step) -> Done:
    """End exactly the processes that a person was shown and chose."""
    named = set(step.run.options.get("processes", ()))
    found = [one for one in foreign_leftovers(step.node.facts) if f"{one.pid}:{one.started}" in named]
    result = shared_host(step.node).run(ray.end_processes(found), timeout=40)
    preparation.gather(step.node)
    if result.status:
        left = {int(pid) for pid in result.last_words().split() if pid.isdigit()}
        owners = ", ".join(sorted({one.user or "?" for one in found if one.pid in left}))
        raise Problem(
            _("%(count)d processes on %(node)s belong to %(owner)s and could not be ended.")
            % {"count": len(left), "node": step.node.name, "owner": owners or "?"},
            _("Ask their owner to end them, or do it as root: kill %(pids)s")
            % {"pids": " ".join(map(str, sorted(left)))})
    return Done(_("%(count)d processes ended") % {"count": len(found)})


def _is_id(text: str) -> bool:
    try:
        return bool(uuid.UUID(text))
    except ValueError:
        return False


runs.register(
    StepKind("ray-room", gettext_lazy("Leftovers and ports"), _room),
    StepKind("end-foreign", gettext_lazy("End the processes"), _end_foreign),
)
