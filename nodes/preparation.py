"""How a node is made ready: looked at, prepared step by step, and what it then is. Stories of one node each.

Which steps a node needs, and how its environment is made, a person chose once (`Options`); what the facts already
satisfy is skipped. Steps that are about several nodes are in `nodes.mesh`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes import locks, runs
from nodes.facts import PROBE, Facts, probe_answer
from nodes.hosts import shared_host
from nodes.models import Node, Run, Step
from nodes.options import Options
from nodes.recipes import Recipe, Satisfied, Site
from nodes.recipes import python_env as env
from nodes.recipes.base import base_packages
from nodes.remote.command import Command, python
from nodes.remote.host import ask
from nodes.remote.root import NO_ROOT, PASSWORD, PASSWORDLESS, ROOT, as_root
from nodes.runs import Done, StepKind, Story
from nodes.states import NodeState


def check(node: Node, by: User | None) -> Run:
    """Gather the node's facts again."""
    with transaction.atomic():
        run = runs.start("check", node.subject, [[("facts", node)]], by)
        node.move(NodeState.CHECKING)
    return run


def prepare(node: Node, by: User | None, options: Options | None = None) -> Run:
    """Bring the node to where it can serve; what is there already is skipped. ``options`` are remembered."""
    with transaction.atomic():
        if options is not None:
            node.preparation = Secret(options.to_text())
            node.save(update_fields=["preparation"])
        run = runs.start("prepare", node.subject, prepare_stages(node), by)
        node.move(NodeState.PREPARING)
    return run


def prepare_many(nodes: Iterable[Node], by: User | None) -> list[tuple[Node, Problem]]:
    """Prepare each as it was prepared last, each in a run of its own; returns those that could not be begun."""
    refused = []
    for node in nodes:
        try:
            prepare(node, by)
        except Problem as problem:
            refused.append((node, problem))
    return refused


def prepare_stages(*nodes: Node) -> list[list[runs.Planned]]:
    """The stages that make nodes ready, for whatever run needs them."""
    chosen = {node.pk: _kinds(options_of(node)) for node in nodes}
    stages: list[list[runs.Planned]] = [
        [(kind, node) for node in nodes if chosen[node.pk][kind]] for kind in _kinds(Options())]
    return [stage for stage in stages if stage] + [[("facts", node) for node in nodes]]


def _kinds(options: Options) -> dict[str, bool]:
    """The kinds of steps in their order, and which of them are chosen."""
    return {
        "facts": True, "base": options.base, "wheels": options.wheelhouse and options.kind != "existing",
        "environment": True, "packages": True, "verification": True,
        "hosts": options.hosts or options.hostname, "trust": options.trust,
    }  # fmt: skip


def options_of(node: Node) -> Options:
    """How the node was prepared last, or the defaults."""
    kept = node.preparation  # a plain string on a row that was made just now
    return Options.from_text(kept.reveal() if isinstance(kept, Secret) else kept)


# --- steps ------------------------------------------------------------------------------------------------------


def site(node: Node) -> Site:
    """What recipes need to know of the node, of how it is prepared, and of the installation's settings."""
    options = options_of(node)
    return Site(
        root=node.root_dir, torch_cpu_index=settings.TORCH_CPU_INDEX,
        pip_index=options.index or settings.PIP_INDEX, extra_index=options.extra_index or settings.PIP_EXTRA_INDEX,
        kind=options.kind, path=options.path, installer=options.installer or settings.CONDA_INSTALLER,
        conda_python=options.python, wheels=options.wheelhouse,
    )  # fmt: skip


def site_with_lock(node: Node) -> Site:
    """The same, with what the cluster's first node has: only preparing asks for it.

    Not while programs run out of a complete environment: that it differs is shown, and no reason to end them.
    """
    facts = node.facts
    in_use = facts.environment.verified and any(process.ours for process in facts.leftovers)
    return site(node) if in_use else replace(site(node), lock=locks.lock_for(node))


def gather(node: Node) -> Facts:
    """Ask the node what it is, and remember it. Raises `Problem`."""
    sent = time.time()
    question = python("python3", PROBE, node.root or "~/.quarterdeck", "-")
    answer = ask(shared_host(node), question, stdin=json.dumps(_asked(node)).encode(), timeout=30)
    try:
        node.facts_json = probe_answer(answer.text, sent, time.time())
    except ValueError as error:
        raise Problem(
            _("%(node)s did not say what it has: %(said)s") % {"node": node.name, "said": answer.last_words()},
            _("Sign in there by hand as the same user; what its shell prints at the start may be in the way."),
        ) from error
    node.facts_at = timezone.now()
    node.save(update_fields=["facts_json", "facts_at"])
    node.poke()
    return node.facts


def _asked(node: Node) -> dict[str, str]:
    """What the probe cannot know by itself: the index that this node's packages come from, if they come from one.

    Not at the first look: a network without a way out answers slowly, and fifty servers are looked at together.
    """
    options = options_of(node)
    if options.wheelhouse or options.kind == "existing" or node.facts_at is None:
        return {}
    return {"index": options.index or settings.PIP_INDEX, "default_index": _pips_own_index()}


@lru_cache
def _pips_own_index() -> str:
    """The index that pip asks where it is told of no other; empty where pip does not say."""
    spec = find_spec("pip")
    source = Path(spec.origin).parent / "_internal/models/index.py" if spec and spec.origin else None
    found = re.search(r'^PyPI = PackageIndex\(\s*"(https://[^"]+)"', source.read_text(), re.M) if source else None
    return f"{found[1]}simple" if found else ""


def seen_in(step: Step) -> bool:
    """Whether the step's run has looked at the node before, and done nothing to it since."""
    here = step.run.steps.filter(node=step.node, stage__lt=step.stage)
    return here.filter(kind="facts").exists() and not here.exclude(job=None).exists()


def _gather_step(step: Step) -> Done | Satisfied:
    """Look at the node; at a run's end only if something was done to it."""
    if seen_in(step):
        return Satisfied(_("nothing was changed"))
    facts = gather(step.node)
    return Done(_("%(cpus)d CPUs, %(gpus)d GPUs") % {"cpus": facts.cpus, "gpus": len(facts.gpus)})


def from_recipe(recipe: Recipe) -> Callable[[Step], Command | Satisfied]:
    """A recipe as a step's beginning: decided from the node's facts."""
    return lambda step: recipe(step.node.facts, site_with_lock(step.node))


def root_way(node: Node) -> str:
    """How a command becomes root's on the node, as `as_root` takes it; empty where it cannot."""
    if node.facts.uid == 0:
        return ROOT
    if node.sudo == Node.Sudo.PASSWORD:
        return PASSWORD if node.sudo_password.reveal() else NO_ROOT
    return PASSWORDLESS if node.sudo == Node.Sudo.PASSWORDLESS else NO_ROOT


def by_root(step: Step, begun: Command | Satisfied) -> Command | Satisfied:
    """What a recipe decided, done by root; left out, and said so, where the node gives none."""
    if isinstance(begun, Satisfied):
        return begun
    how = root_way(step.node)
    if how == NO_ROOT:
        return Satisfied(_("left out: it needs root, which this node does not give"))
    return as_root(begun, how, step.node.sudo_password)


def _base(step: Step) -> Command | Satisfied:
    if root_way(step.node) == NO_ROOT:
        return Satisfied(_("left out: it needs root, which this node does not give"))
    return by_root(step, base_packages(step.node.facts))


def _settled(run: Run, ok: bool, reason: str) -> None:
    node = Node.objects.filter(pk=run.about.partition(":")[2]).first()
    if node is None:
        return
    if not ok:
        node.move(NodeState.FAILED, reason)
    else:
        node.move(node.rest_state)


runs.register(
    StepKind("facts", gettext_lazy("Look at the server"), _gather_step),
    StepKind("base", gettext_lazy("Base packages"), _base),
    StepKind("environment", gettext_lazy("Python environment"), from_recipe(env.environment)),
    StepKind("packages", gettext_lazy("Packages: vLLM, Ray, PyTorch"), from_recipe(env.packages)),
    StepKind("verification", gettext_lazy("Verification"), from_recipe(env.verification)),
)
runs.register_story(Story("check", gettext_lazy("Check"), _settled))
runs.register_story(Story("prepare", gettext_lazy("Prepare"), _settled))
