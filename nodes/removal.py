"""How a node leaves: what Quarterdeck put there is taken away step by step, as a run; or it is only forgotten."""

from __future__ import annotations

from contextlib import suppress

from django.contrib.auth.models import User
from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from nodes import access, acquaintances, preparation, runs
from nodes.clusters import stories as clusters
from nodes.hosts import close_shared, jump_host, shared_host
from nodes.models import Bastion, Node, Run, Step
from nodes.recipes import Satisfied
from nodes.recipes import removal as recipes
from nodes.remote.command import Command
from nodes.remote.errors import SignInRefused
from nodes.remote.host import ask
from nodes.runs import Done, StepKind, Story
from nodes.states import JOB_ACTIVE, NodeState

_KINDS = ("remove-hosts", "remove-trust", "remove-files", "remove-key")


def remove(node: Node, by: User | None, *, models: bool) -> Run:
    """Take everything of ours off the server, with or without the models, and then the node out of Quarterdeck.

    Other nodes that know it by name, and are in sight, forget it first. Raises `Problem` while it is used, or something
    else is being done to it.
    """
    _check_unused(node)
    clusters.check_free(node)
    with transaction.atomic():
        own: list[list[runs.Planned]] = [[(kind, node)] for kind in _KINDS]
        stages: list[list[runs.Planned]] = [[("facts", node)], *acquaintances.stages(node), *own]
        run = runs.start("remove", node.subject, stages, by, models=models)
        if not node.move(NodeState.REMOVING):
            raise Problem(
                _("Something else is already being done here."), _("Wait for it to end, then try again."))
    return run


def forget(node: Node, by: User | None) -> None:
    """Take the node out of Quarterdeck, and our key off it if it can be reached. Raises `Problem` while it is used."""
    _check_unused(node)
    if node.kind == Node.Kind.SSH:
        _take_key_away(node)
    _delete(node)


def has_failed(node: Node) -> bool:
    """Whether what was done to the node last was its removal, and failed."""
    last = Run.objects.filter(about=node.subject).first()
    return node.state == NodeState.FAILED and last is not None and last.story == "remove"


def _check_unused(node: Node) -> None:
    if node.replicas.exists() or node.heads.filter(deployments__isnull=False).exists():
        raise Problem(
            _("%(node)s still has deployments.") % {"node": node.name}, _("Stop and delete them first."))
    away = node.state == NodeState.UNREACHABLE  # what runs there, if it does, cannot be stopped from here
    if node.ray is not None and node.ray.state in JOB_ACTIVE and not away:
        raise Problem(
            _("Ray runs on %(node)s.") % {"node": node.name}, _("Stop its cluster first, or let it leave that."))
    behind = list(node.reached_through.values_list("name", flat=True))
    if behind:
        raise Problem(
            _("%(names)s are reached through %(node)s.") % {"names": ", ".join(behind[:8]), "node": node.name},
            _("Remove them first."))
    led = node.heads.filter(nodes__in=Node.objects.exclude(pk=node.pk)).first()
    if led is not None:
        raise Problem(
            _("%(node)s is the head of the cluster %(cluster)s.") % {"node": node.name, "cluster": led.name},
            _("Stop and delete that cluster first."))


def _delete(node: Node) -> None:
    last = _bastion_of_its_own(node)
    close_shared(node)
    with transaction.atomic():
        node.heads.all().delete()
        node.delete()
        if last is not None:
            close_shared(last)
            last.delete()


def _take_key_away(node: Node) -> None:
    with suppress(Problem):  # a node that is gone cannot be asked; forgetting it is what was wanted
        access.remove_key(shared_host(node))
    _take_key_off_bastion(node)


def _take_key_off_bastion(node: Node) -> None:
    """A jump host that no other node is reached through needs our key no longer."""
    last = _bastion_of_its_own(node)
    with suppress(Problem):
        if host := jump_host(None, last):
            access.remove_key(host)


def _bastion_of_its_own(node: Node) -> Bastion | None:
    shared = node.bastion is not None and node.bastion.reached_through.exclude(pk=node.pk).exists()
    return None if shared else node.bastion


# --- steps ------------------------------------------------------------------------------------------------------


def _hosts_file(step: Step) -> Command | Satisfied:
    return preparation.by_root(step, recipes.hosts_file(step.node.facts, preparation.site(step.node)))


def _trust(step: Step) -> Command | Satisfied:
    return recipes.cluster_trust(step.node.facts, preparation.site(step.node))


def _files(step: Step) -> Command:
    models = bool(step.run.options.get("models"))
    return recipes.own_files(step.node.facts, preparation.site(step.node), models=models)


def _key(step: Step) -> Done:
    command = recipes.own_key(preparation.site(step.node), access.own_line())
    try:
        ask(shared_host(step.node), command)
    except SignInRefused:  # a worker took it away and was killed before it could say so
        return Done(_("it was gone already"))
    _take_key_off_bastion(step.node)
    return Done()


def _settled(run: Run, ok: bool, reason: str) -> None:
    node = Node.objects.filter(pk=run.about.partition(":")[2]).first()
    if node is None:
        return
    try:
        if ok:
            _check_unused(node)
            _delete(node)
        else:
            node.move(NodeState.FAILED, reason)
    except Problem as problem:  # it came into use meanwhile
        node.move(NodeState.FAILED, problem.told)


runs.register(
    StepKind("remove-hosts", gettext_lazy("Names in /etc/hosts, taken away"), _hosts_file),
    StepKind("remove-trust", gettext_lazy("Keys of the cluster, taken away"), _trust),
    StepKind("remove-files", gettext_lazy("Jobs, environment and files, taken away"), _files),
    StepKind("remove-key", gettext_lazy("Quarterdeck's own key, taken away"), _key),
)
runs.register_story(Story("remove", gettext_lazy("Remove"), _settled))
