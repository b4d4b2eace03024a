"""What Ray says of a cluster, and what of that is not as it should be. Pure; reads what ``ray_view.py`` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from django.utils.translation import gettext as _

from controlplane.problems import Problem
from nodes.facts import Facts
from nodes.recipes.ray import offered_gpus, ray_address


@dataclass(frozen=True)
class RayNode:
    """One node as Ray has it, by its address. ``why``: in Ray's words, why it is dead."""

    ip: str
    head: bool = False
    alive: bool = True
    why: str = ""
    total: Mapping[str, float] = field(default_factory=dict)
    used: Mapping[str, float] = field(default_factory=dict)


#: ``GPU_group_0_e4485b71…`` and ``bundle_group_e4485b71…``.
_OF_A_GROUP = re.compile(r"_group_(\d+_)?[0-9a-f]{16,}$")


@dataclass(frozen=True)
class View:
    """The whole cluster at one moment. ``waiting``: placement groups that Ray has no room for."""

    t: float = 0.0  # seconds since 1970; on the head, and once it is kept, here
    ray: str = ""
    python: str = ""
    nodes: tuple[RayNode, ...] = ()
    waiting: int = 0

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ValueError for what ``ray_view.py`` would not print."""
        data = json.loads(text)
        try:
            nodes = tuple(RayNode(**{**node, "why": str(node["why"])[:500]}) for node in data["nodes"])
            return cls(float(data["t"]), str(data["ray"]), str(data["python"]), nodes, int(data["waiting"]))
        except (TypeError, KeyError) as error:
            raise ValueError(f"no view of a Ray cluster: {error}") from error

    @property
    def alive(self) -> tuple[RayNode, ...]:
        return tuple(node for node in self.nodes if node.alive)

    def at(self, address: str) -> RayNode | None:
        """The node that goes by this address in Ray."""
        return next((node for node in self.nodes if node.ip == ray_address(address)), None)

    def resources(self) -> list[tuple[str, float, float]]:
        """Name, used and total of every resource of the living nodes, GPUs and processors first.

        Without what Ray adds for each placement group: the same GPUs once more, under the group's id.
        """
        total: dict[str, list[float]] = {}
        for node in self.alive:
            for name, amount in node.total.items():
                if _OF_A_GROUP.search(name):
                    continue
                sums = total.setdefault(name, [0.0, 0.0])
                sums[0] += node.used.get(name, 0.0)
                sums[1] += amount
        first = {"GPU": 0, "CPU": 1, "memory": 3}
        return [(name, *total[name]) for name in sorted(total, key=lambda name: (first.get(name, 2), name))]  # type: ignore[misc]

    def gpus(self) -> tuple[float, float]:
        """Used and total GPUs of the living nodes, with the placeholders of nodes that have none."""
        found = {name: (used, total) for name, used, total in self.resources()}
        return found.get("GPU", (0.0, 0.0))


@dataclass(frozen=True)
class Member:
    """A node of a cluster as Quarterdeck knows it: what Ray should have."""

    name: str
    address: str
    facts: Facts
    resources: Mapping[str, float] = field(default_factory=dict)


def summary(view: View, members: Iterable[Member]) -> str:
    """A line for a step: how many nodes, and what of their resources is in use."""
    real = any(member.facts.gpus for member in members)
    shown = [part for part in view.resources() if part[0] in (("GPU", "CPU") if real else ("CPU",))]
    usage = ", ".join(f"{used:g}/{total:g} {name}" for name, used, total in shown)
    count = len(view.alive)
    if count == 1:
        return _("1 node, in use: %(usage)s") % {"usage": usage}
    return _("%(count)d nodes, in use: %(usage)s") % {"count": count, "usage": usage}


def absent(view: View, members: Iterable[Member]) -> dict[str, str]:
    """Names of the members that Ray does not have alive → why, as far as Ray says it."""
    found = {member.name: view.at(member.address) for member in members}
    return {
        name: (node.why or _("Ray calls it dead")) if node else _("Ray does not know it")
        for name, node in found.items()
        if node is None or not node.alive
    }


def differences(view: View, members: Iterable[Member]) -> list[Problem]:
    """Where a living node offers Ray something else than it has."""
    return [problem for member in members for problem in _differences(view.at(member.address), member)]


def _differences(node: RayNode | None, member: Member) -> Iterable[Problem]:
    if node is None or not node.alive:
        return
    wanted, has = offered_gpus(member.facts), node.total.get("GPU", 0.0)
    if has != wanted:
        yield Problem(
            _("Ray counts %(ray)g GPUs on %(node)s, nvidia-smi %(smi)d.")
            % {"ray": has, "node": member.name, "smi": len(member.facts.gpus)},
            _("A GPU was added, or fell off the bus, after Ray started. Stop and start the cluster."),
        )
    for name, amount in member.resources.items():
        if node.total.get(name, 0.0) != amount:
            yield Problem(
                _("Ray counts %(ray)g of the resource %(name)s on %(node)s instead of %(wanted)g.")
                % {"ray": node.total.get(name, 0.0), "name": name, "node": member.name, "wanted": amount},
                _("It was changed after Ray started. Stop and start the cluster."),
            )


def unlike(members: Sequence[Member]) -> list[Problem]:
    """Where the versions on the nodes differ: Ray refuses another Python or Ray, vLLM breaks on another vLLM."""
    kinds = {
        "Python": {member.name: member.facts.environment.python for member in members},
        "Ray": {member.name: member.facts.environment.packages.get("ray", "") for member in members},
        "vLLM": {member.name: _release(member.facts.environment.packages.get("vllm", "")) for member in members},
    }
    return [_unlike(what, versions) for what, versions in kinds.items() if len(set(versions.values())) > 1]


def _release(version: str) -> str:
    return version.partition("+")[0]


def _unlike(what: str, versions: Mapping[str, str]) -> Problem:
    told = ", ".join(f"{name} {version or '–'}" for name, version in sorted(versions.items()))
    python = _("Ray needs the same one on every node, down to its last number. Install it, then prepare again.")
    packages = _("Prepare the nodes again: each gets the same set of packages.")
    return Problem(
        _("%(what)s is not the same on all nodes: %(told)s.") % {"what": what, "told": told},
        python if what == "Python" else packages,
    )


def world_size(options: Mapping[str, Any]) -> int:
    """How many GPUs vLLM asks Ray for, by its own options; 0 where they are no numbers (vLLM says so itself)."""
    try:
        tensor = int(options.get("tensor-parallel-size", 1))
        return tensor * int(options.get("pipeline-parallel-size", 1))
    except (TypeError, ValueError):
        return 0


_EXIT = re.compile(r"-- (?P<what>\w+) \[exit code=(?P<code>-?\d+)\]")


def died_of(log: str) -> str:
    """Which of Ray's own processes ended first, and how, by what `ray start` says of it; empty where it does not."""
    told = []
    for found in _EXIT.finditer(log):
        code = int(found["code"])
        how = _("%(what)s was killed by signal %(code)d") if code < 0 else _("%(what)s ended with status %(code)d")
        told.append(how % {"what": found["what"], "code": abs(code)})
    return ", ".join(dict.fromkeys(told))


def check_room(view: View, members: Sequence[Member], wanted: int) -> None:
    """Raises `Problem` where Ray could not place vLLM's workers: vLLM itself would wait half an hour for that."""
    used, total = view.gpus()
    what = {"wanted": wanted, "total": total, "free": total - used}
    if any(member.facts.gpus for member in members):
        never = _("The model server wants %(wanted)d GPUs, and Ray has %(total)g in this cluster.")
        now = _("The model server wants %(wanted)d GPUs, and only %(free)g of the %(total)g in this cluster are free.")
    else:
        never = _("The model server wants %(wanted)d workers, and this cluster without GPUs has room for %(total)g.")
        now = _("The model server wants %(wanted)d workers, and of %(total)g places in this cluster %(free)g are free.")
    if wanted > total:
        raise Problem(
            never % what,
            _("Lower tensor-parallel-size × pipeline-parallel-size, or let more nodes join the cluster."))
    if wanted > total - used:
        raise Problem(
            now % what, _("Stop a deployment that uses them, or lower tensor-parallel-size × pipeline-parallel-size."))


def check_memory(nodes: Mapping[str, Facts], share: float, wanted: int) -> None:
    """Raises `Problem` unless ``wanted`` GPUs have the ``share`` of their whole memory free, as vLLM asks for it."""
    enough = 0
    short: list[str] = []
    for name, facts in nodes.items():
        for gpu in facts.gpus:
            free = gpu.memory_total_mib - gpu.memory_used_mib
            if free >= share * gpu.memory_total_mib:
                enough += 1
                continue
            holders = [one for one in facts.gpu_processes if one.gpu_uuid == gpu.uuid]
            by = ", ".join(f"{one.command or '?'} ({one.user or '?'}, {one.used_mib} MiB)" for one in holders[:3])
            short.append(f"{name} GPU {gpu.index}: {free} MiB {_('free')}" + (f", {by}" if by else ""))
    if enough < wanted:
        raise Problem(
            _("%(enough)d of the %(wanted)d GPUs that are wanted have %(share)d %% of their memory free. %(short)s")
            % {"enough": enough, "wanted": wanted, "share": round(share * 100), "short": "; ".join(short[:8])},
            _("End what holds the memory, or lower gpu-memory-utilization."),
        )
