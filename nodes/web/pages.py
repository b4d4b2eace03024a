"""What pages show of runs, jobs and facts: titles, lines, sources of logs. Reads only."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple
from uuid import UUID

from django.apps import apps
from django.db.models import QuerySet
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from controlplane.lifecycle import Lifecycle
from controlplane.problems import Problem
from controlplane.templatetags.deck import gib, mib_as_gib
from nodes import gpu_words, runs
from nodes.facts import Facts, Interface
from nodes.models import Bastion, Job, Node, Run, Step
from nodes.states import RunState

Text = str | Promise


@dataclass(frozen=True)
class StepLine:
    """A step with the title people read."""

    step: Step
    title: Text
    about: Lifecycle | None = None  # what it is about beside the run's own subject, such as one replica of several


class Stage(NamedTuple):
    """Steps of one kind side by side on several nodes, told by the one that says most of how far they are."""

    line: StepLine
    times: int


#: A stage has failed, runs or waits as soon as one of its steps does.
_TELLS_MOST = (RunState.FAILED, RunState.RUNNING, RunState.WAITING, RunState.DONE, RunState.SKIPPED)


@dataclass(frozen=True)
class Story:
    """A run as a page tells it: title and lines."""

    run: Run
    title: Text
    lines: Sequence[StepLine]
    about: Lifecycle | None  # what it is about; None when that is gone

    @property
    def stages(self) -> list[Stage]:
        """The lines in short: what happens on each node of a cluster is one stage."""
        groups = groupby(self.lines, lambda line: (line.step.stage, line.step.kind, line.step.about))
        alike = [list(group) for _kind, group in groups]
        return [Stage(min(lines, key=lambda line: _TELLS_MOST.index(RunState(line.step.state))), len(lines))
                for lines in alike]

    @property
    def several_nodes(self) -> bool:
        return len({line.step.node_id for line in self.lines}) > 1

    @property
    def several_subjects(self) -> bool:
        return len({line.step.about for line in self.lines} - {""}) > 1


def stories(found: QuerySet[Run], limit: int = 10) -> list[Story]:
    """The newest runs of a query, told; the number of queries does not grow with theirs."""
    newest = list(found.select_related("created_by").prefetch_related("steps__node", "steps__job")[:limit])
    named = {run.about for run in newest} | {step.about for run in newest for step in run.steps.all() if step.about}
    about = subjects(named)
    return [_tell(run, about) for run in newest]


def _tell(run: Run, about: Mapping[str, Lifecycle]) -> Story:
    lines = [StepLine(step, runs.step_title(step.kind), about.get(step.about)) for step in run.steps.all()]
    return Story(run, runs.run_title(run), lines, about.get(run.about))


def subjects(names: Iterable[str]) -> dict[str, Lifecycle]:
    """The rows that subjects ("node:3", "deployment:1") name, as far as they exist; one query a kind."""
    split = [name.split(":") for name in names]
    found: dict[str, Lifecycle] = {}
    for model in apps.get_models():
        keys = [key for kind, key in split if kind == model._meta.model_name]
        if keys and issubclass(model, Lifecycle):
            found.update({row.subject: row for row in model._default_manager.filter(pk__in=keys)})
    return found


@dataclass(frozen=True)
class Source:
    """A log that a viewer can show."""

    job: Job
    node: Node
    title: Text
    as_asked: bool = False  # a service that ended because somebody stopped it: its exit status says nothing


def sources(told: Sequence[Story], server: Job | None = None) -> list[Source]:
    """The logs of these runs, in front what to look at first: what runs now, what failed, the server, the newest."""
    steps = {
        line.step.job: (line, story)
        for story in told
        for line in reversed(story.lines)
        if line.step.job is not None
    }
    attempts = _attempts([line.step for line, _story in steps.values()])
    titles: dict[Job, tuple[Node, Text]] = {
        job: (line.step.node, _source_title(line, story, attempts.get(job.pk, 1)))
        for job, (line, story) in steps.items()
    }
    if server is not None:
        titles.setdefault(server, (server.node, f"{server.name} · {server.node}"))
    stopped = _stopped([job for job in titles if job.service and job.ended_at])
    found = [Source(job, node, title, job.pk in stopped) for job, (node, title) in titles.items()]
    return sorted(found, key=lambda source: _interest(source, server))


def _source_title(line: StepLine, story: Story, attempt: int) -> Text:
    again = " · " + _("attempt %(number)d") % {"number": attempt} if attempt > 1 else ""
    return f"{line.title} · {line.step.node} · #{story.run.pk}{again}"


def _attempts(steps: Sequence[Step]) -> dict[UUID, int]:
    """Of services: the how manieth each job is of its kind, on its node, for what it serves."""
    served = {_served(step) for step in steps if step.job is not None and step.job.service}
    if not served:
        return {}
    kinds = {kind for _about, kind, _node in served}
    alike = Step.objects.filter(kind__in=kinds, node__in={node for _about, _kind, node in served}, job__isnull=False)
    told = alike.order_by("started_at", "pk").values_list("about", "run__about", "kind", "node_id", "job_id")
    counts: Counter[tuple[str, str, int]] = Counter()
    found = {}
    for about, run_about, kind, node, job in told:
        counts[about or run_about, kind, node] += 1
        found[job] = counts[about or run_about, kind, node]
    return found


def _served(step: Step) -> tuple[str, str, int]:
    return step.about or step.run.about, step.kind, step.node_id


#: Stories that end services.
_STOPS = ("stop", "dissolve", "leave", "mend")


def _stopped(services: Sequence[Job]) -> set[UUID]:
    """Those that ended while a run that stops services went on at their node."""
    if not services:
        return set()
    runs_there = Run.objects.filter(story__in=_STOPS, steps__node__in={job.node_id for job in services})
    times = list(runs_there.values_list("steps__node", "created_at", "finished_at").distinct())
    return {
        job.pk
        for job in services
        for node, begun, over in times
        if job.ended_at and node == job.node_id and begun <= job.ended_at and (over is None or job.ended_at <= over)
    }


def _interest(source: Source, server: Job | None) -> tuple[int, float]:
    job = source.job
    busy = job.state in ("starting", "running")
    bad = (bool(job.exit_status) or job.state == "lost") and not source.as_asked
    order = 0 if busy and not job.service else 1 if bad else 2 if busy or job == server else 3
    return order, -job.created_at.timestamp()


@dataclass(frozen=True)
class ChangedKey:
    """A host that showed another key than the pinned one: the node itself, or one on the way to it."""

    host: Node | Bastion
    pinned: str
    offered: str
    file: str

    @property
    def elsewhere(self) -> Node | None:
        """The node whose own page it is approved on."""
        return self.host if isinstance(self.host, Node) else None


def changed_key(node: Node) -> ChangedKey | None:
    """The changed key that stops all work on the node, the nearest to Quarterdeck first."""
    way: list[Node | Bastion] = [host for host in (node.bastion, node.jump, node) if host is not None]
    host = next((each for each in way if each.offered_host_key), None)
    if host is None:
        return changed_key(node.jump) if node.jump else None
    offered = host.offered_host_key
    return ChangedKey(host, fingerprint(host.host_key), fingerprint(offered), key_file(offered))


def shown_with(node: Node, fingerprint: str) -> Node | Bastion:
    """The host whose changed key was shown to a person with this fingerprint. Raises `Problem` if it is another now."""
    changed = changed_key(node)
    if changed is None or changed.offered != fingerprint:
        raise Problem(
            gettext("The host shows yet another key by now."),
            gettext("Reload the page and compare the new fingerprint."),
        )
    return changed.host


def fingerprint(key_line: str) -> str:
    """The SHA256 fingerprint of a public key line ("ssh-ed25519 AAAA…"), as ``ssh-keygen -l`` prints it."""
    try:
        raw = base64.b64decode(key_line.split()[1], validate=True)
    except (IndexError, binascii.Error):
        return ""
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


def key_file(key_line: str) -> str:
    """Where OpenSSH keeps the public half of a host key of this type, below /etc/ssh."""
    kinds = {"ssh-ed25519": "ed25519", "ssh-rsa": "rsa"}
    return f"ssh_host_{kinds.get(key_line.split(' ')[0], 'ecdsa')}_key.pub"


def fact_rows(node: Node) -> list[tuple[Text, str]]:
    """Label and value of everything known about a node, in reading order; what is not known is left out."""
    facts = node.facts
    rows: list[tuple[Text, str]] = [
        (_("Reached through"), str(node.jump or node.bastion or "")),
        (_("Labels"), ", ".join(node.labels)),
        (_("Root"), _root(node) if node.facts_at else ""),
        (_("Operating system"), ", ".join(filter(None, [facts.os, facts.kernel]))),
        (_("CPU"), _cpu(facts)),
        (_("Memory"), _of(facts.memory_available, facts.memory_total)),
        ("/dev/shm", f"{gib(facts.shm_total)} GiB" if facts.shm_total else ""),  # noqa: S108  (shown, not used)
        (_("Disk"), _of(facts.disk_free, facts.disk_total)),
        (_("Disks"), "\n".join(f"{disk.mount}: {_of(disk.free, disk.total)}" for disk in facts.disks[:6])),
        ("GPU", _gpus(facts)),
        (_("GPU links"), gpu_words.links(facts)),
        (_("GPU instances (MIG)"), gpu_words.split(facts)),
        (_("Xid errors"), gpu_words.xids(facts) if facts.gpus else ""),
        (_("Driver"), _driver(facts)),
        (_("Other accelerators"), _others(facts)),
        (_("Network"), "\n".join(map(_interface, facts.interfaces[:6]))),
        (_("Name resolves to"), facts.hostname_address),
        (_("Ports in use"), _ports(facts)),
        (_("Clock"), _clock(facts)),
        ("Python", ", ".join(dict.fromkeys(one.version for one in facts.pythons)) or facts.python),
        (_("Environment"), _environment(facts)),
        (_("Fingerprint"), facts.environment.fingerprint),
        (_("Models"), ", ".join(facts.models)),
        (_("Directory"), node.root_dir if facts.home or node.root else ""),
    ]
    return [(label, value) for label, value in rows if value]


def _root(node: Node) -> str:
    """How root is had there, and where it is not, what is left out for it."""
    if node.facts.uid == 0:
        return gettext("the user is root")
    if node.sudo == Node.Sudo.NONE:
        return gettext("none: base packages, the host's name and /etc/hosts are left out")
    return str(node.get_sudo_display())


def _cpu(facts: Facts) -> str:
    wide = "AVX-512" if any(f.startswith("avx512") for f in facts.cpu_flags) else ""
    narrow = "AVX2" if "avx2" in facts.cpu_flags else ""
    cores = f"{facts.cpus} × {facts.cpu_model}" if facts.cpus else ""
    return ", ".join(filter(None, [cores, wide or narrow]))


def _gpus(facts: Facts) -> str:
    kinds = Counter((gpu.name, gpu.memory_total_mib) for gpu in facts.gpus)
    return ", ".join(f"{count} × {name}, {mib_as_gib(size)} GiB" for (name, size), count in kinds.items())


def _driver(facts: Facts) -> str:
    driver = facts.gpus[0].driver if facts.gpus else ""
    return str(_("%(driver)s, CUDA up to %(cuda)s") % {"driver": driver, "cuda": facts.cuda}) if facts.cuda else driver


def _others(facts: Facts) -> str:
    """Accelerators that are recognised and cannot be used."""
    makers = {"amd": "AMD", "ascend": "Huawei Ascend"}
    names = list(facts.accelerator_names) or [makers[maker] for maker in facts.accelerators if maker in makers]
    named = ", ".join(f"{count} × {name}" for name, count in Counter(names).items())
    return str(_("%(names)s, not supported yet") % {"names": named}) if named else ""


def _interface(one: Interface) -> str:
    speed = f"{one.mbits / 1000:g} Gbit/s" if one.mbits else ""
    return ", ".join(filter(None, [f"{one.name} {one.address}", speed]))


def _ports(facts: Facts) -> str:
    most = 16
    return ", ".join(map(str, facts.listening[:most])) + (" …" if len(facts.listening) > most else "")


def _clock(facts: Facts) -> str:
    if not facts.clock:
        return ""
    return str(_("right") if abs(facts.clock_offset) < 0.05 else _("%(offset)+.1f s") % {"offset": facts.clock_offset})


def _of(free: int, total: int) -> str:
    return str(_("%(total)s GiB, %(free)s free") % {"total": gib(total), "free": gib(free)}) if total else ""


def _environment(facts: Facts) -> str:
    packages = facts.environment.packages
    known = (("vllm", "vLLM"), ("ray", "Ray"))
    named = [f"{label} {packages[name]}" for name, label in known if name in packages]
    python = [f"Python {facts.environment.python}"] if facts.environment.python else []
    return ", ".join(python + named)
