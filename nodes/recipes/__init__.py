"""Recipes: what a node still needs, as commands. Pure functions of the node's facts and the site's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nodes.facts import Facts
from nodes.remote.command import Command


class Satisfied(NamedTuple):
    """Nothing to do; ``detail`` says what is there already."""

    detail: str = ""


@dataclass(frozen=True)
class Site:
    """What a recipe must know beside the facts. Paths are absolute on the node; an empty index means pip's own."""

    root: str
    pip_index: str = ""
    torch_cpu_index: str = ""


Recipe = Callable[[Facts, Site], Command | Satisfied]
