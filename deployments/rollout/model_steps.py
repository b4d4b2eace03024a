"""The steps that bring a deployment's model to the nodes: looked for, fetched once from its hub, copied to the others.

The first node of a rollout has it, or downloads it; each other one compares its files with the first's, by size and
checksum, and copies what differs over the cluster's own trust. What is there already is skipped, without any network.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from deployments.hub import client
from deployments.hub.models import access
from deployments.hub.source import HubModel
from deployments.models import Deployment
from deployments.rollout.steps import deployment_of
from nodes import preparation, runs
from nodes.clusters.address import inner_address
from nodes.hosts import shared_host
from nodes.models import Node, Step
from nodes.recipes import Satisfied, Site, models
from nodes.recipes.models import Files
from nodes.remote.command import Command
from nodes.remote.host import ask
from nodes.runs import StepKind

#: As one node of a cluster signs in to another: without a question, and only to the pinned key.
_SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=10", "--")


def directory(model: str, site: Site) -> str:
    """Where a deployment's model lies on the nodes."""
    if model == Deployment.DEMO:
        return models.demo_path(site)
    hub = HubModel.parse(model)
    return models.hub_path(site, hub.directory) if hub else model


def stages(deployment: Deployment, nodes: Sequence[Node]) -> list[list[runs.Planned]]:
    """The model on every one of these nodes. The demo is made on each, everything else is copied from the first."""
    first, *others = nodes
    if deployment.model == Deployment.DEMO or not others:
        return [[("model", node) for node in nodes]]
    return [[("model", first)], [("trust", node) for node in nodes], [("model-copy", node) for node in others]]


def _model(step: Step) -> Command | Satisfied:
    model, facts, site = deployment_of(step).model, step.node.facts, preparation.site(step.node)
    if model == Deployment.DEMO:
        return models.demo_model(facts, site)
    hub = HubModel.parse(model)
    if hub is not None:
        return _fetched(hub, step.node)
    if step.run.steps.filter(kind="model-copy").exists() and not _all_known(_files(step.node, model)):
        return models.summed(model)
    return models.model_present(model)(facts, site)


def _fetched(hub: HubModel, node: Node) -> Command | Satisfied:
    site = preparation.site(node)
    place = models.hub_path(site, hub.directory)
    if hub.directory in node.facts.models:
        return Satisfied(place)
    way = access(hub.hub)
    found = client.listing(way, hub)
    _check_room(node, place, f"{place}.partial", found.size)
    files = [{**file._asdict(), "url": client.file_url(way, hub, found.commit, file.path)} for file in found.files]
    return models.fetched(site, place, {"model": hub.id, "commit": found.commit, "files": files}, way.token)


def _copy(step: Step) -> Command | Satisfied:
    source = _source(step)
    place = directory(deployment_of(step).model, preparation.site(source))
    there = _files(source, place)
    if not _all_known(there):
        raise Problem(
            _("%(place)s on %(node)s changed while it was being compared.") % {"place": place, "node": source.name},
            _("Start again once nobody writes to it."),
        )
    here = _files(step.node, place)
    if here == there:
        return Satisfied(_("the same as on %(node)s") % {"node": source.name})
    if source.kind == Node.Kind.LOCAL or step.node.kind == Node.Kind.LOCAL:
        raise Problem(
            _("%(place)s is missing on %(node)s, and it cannot be copied between this machine and a server.")
            % {"place": place, "node": step.node.name},
            _("Copy it there by hand, or make a cluster of servers that are reached over SSH."),
        )
    _check_room(step.node, place, "", sum(size for name, size, digest in there if (name, size, digest) not in here))
    return models.copied(place, there, [*_SSH, inner_address(source)])


def _check_room(node: Node, place: str, begun: str, size: int) -> None:
    """Raises `Problem` where the disk is too small for what is still to come, before any of it is fetched."""
    try:
        free, there = models.parse_room(ask(shared_host(node), models.room(place, begun)).text)
    except ValueError:  # a df or du that nobody knows: the program that fetches looks too
        return
    if free < size - there:
        names = {"needed": (size - there) / 2**30, "place": place, "node": node.name, "free": free / 2**30}
        what = _("The model needs %(needed).1f GiB more for %(place)s, and %(node)s has %(free).1f GiB free there.")
        raise Problem(
            what % names,
            _("Free space there, or put the model into a directory on a bigger disk and give that path."),
        )


def _source(step: Step) -> Node:
    return step.run.steps.select_related("node").get(kind="model").node


def _files(node: Node, place: str) -> Files:
    """The model's files on the node, as far as their checksums are known; none where there is no such directory."""
    answer = ask(shared_host(node), models.listed(preparation.site(node), place), timeout=60)
    try:
        return models.listing(answer.text)
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(
            _("%(node)s did not say what it has in %(place)s: %(said)s")
            % {"node": node.name, "place": place, "said": answer.last_words()},
            _("Sign in there by hand as the same user; what its shell prints at the start may be in the way."),
        ) from error


def _all_known(files: Files) -> bool:
    return bool(files) and all(digest for _name, _size, digest in files)


runs.register(
    StepKind("model", gettext_lazy("Model"), _model),
    StepKind("model-copy", gettext_lazy("Model, copied"), _copy),
)
