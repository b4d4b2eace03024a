"""How a node is made ready: looked at, prepared step by step, and what it then is. Stories of one node each.

Which steps a node needs, and how its environment is made, a person chose once (`options`); what the facts already
satisfy is skipped. Steps that are about several nodes are in `nodes.mesh`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from nodes import runs
from nodes.facts import PROBE, Facts, probe_answer
from nodes.hosts import shared_host
from nodes.models import Node, Run, Step
from nodes.recipes import Recipe, Satisfied, Site
from nodes.recipes import python_env as env
from nodes.remote.command import Command, python
from nodes.remote.host import ask
from nodes.runs import Done, StepKind, Story
from nodes.states import NodeState


def check(node: Node, by: User | None) -> Run:
    """Gather the node's facts again."""
    with transaction.atomic():
        run = runs.start("check", node.subject, [[("facts", node)]], by)
        node.move(NodeState.CHECKING)
    return run


def prepare(node: Node, by: User | None) -> Run:
    """Bring the node to where it can serve: environment and packages; what is there already is skipped."""
    with transaction.atomic():
        run = runs.start("prepare", node.subject, prepare_stages(node), by)
        node.move(NodeState.PREPARING)
    return run


def prepare_stages(*nodes: Node) -> list[list[runs.Planned]]:
    """The stages that make nodes ready, for whatever run needs them."""
    kinds = ("facts", "environment", "packages", "verification", "facts")
    return [[(kind, node) for node in nodes] for kind in kinds]


# --- steps ------------------------------------------------------------------------------------------------------


def site(node: Node) -> Site:
    """What recipes need to know of the node and of the installation's settings."""
    return Site(root=node.root_dir, pip_index=settings.PIP_INDEX, torch_cpu_index=settings.TORCH_CPU_INDEX)


def gather(node: Node) -> Facts:
    """Ask the node what it is, and remember it. Raises `Problem`."""
    sent = time.time()
    answer = ask(shared_host(node), python("python3", PROBE, node.root or "~/.quarterdeck"), timeout=30)
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


def _gather_step(step: Step) -> Done:
    facts = gather(step.node)
    return Done(_("%(cpus)d CPUs, %(gpus)d GPUs") % {"cpus": facts.cpus, "gpus": len(facts.gpus)})


def from_recipe(recipe: Recipe) -> Callable[[Step], Command | Satisfied]:
    """A recipe as a step's beginning: decided from the node's facts."""
    return lambda step: recipe(step.node.facts, site(step.node))


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
    StepKind("environment", gettext_lazy("Python environment"), from_recipe(env.environment)),
    StepKind("packages", gettext_lazy("Packages: vLLM, Ray, PyTorch"), from_recipe(env.packages)),
    StepKind("verification", gettext_lazy("Verification"), from_recipe(env.verification)),
)
runs.register_story(Story("check", gettext_lazy("Check"), _settled))
runs.register_story(Story("prepare", gettext_lazy("Prepare"), _settled))
