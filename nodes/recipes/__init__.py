"""Recipes: what has to be done on a node, as functions from facts to a command, or to "already so". Pure.

The programs in ``assets/`` are shipped to nodes and run there; the package sets in ``presets/`` are what a
node's Python environment consists of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from nodes.facts import Facts
from nodes.remote.command import Command


@dataclass(frozen=True)
class Lock:
    """The environment that a cluster's first node ended with: Python's version and every package."""

    python: str
    distributions: tuple[str, ...]
    fingerprint: str  # as in `Environment.fingerprint`
    node: str = ""  # whose it is, for people


@dataclass(frozen=True)
class Site:
    """Where things are on one node, and where it installs from. Paths are absolute."""

    root: str
    pip_index: str = ""  # empty: whatever pip on the node is configured for
    torch_cpu_index: str = ""  # asked for PyTorch's CPU build, where the node's own index does not have it
    python: str = ""  # the interpreter environments are made with; empty: the one in the facts
    extra_index: str = ""  # asked besides the index
    kind: str = "venv"  # how the environment is made: "venv", "conda", or "existing": it is there
    path: str = ""  # conda: where conda itself is, or goes; existing: the environment's directory
    installer: str = ""  # conda: a URL, or a path on the node
    conda_python: str = ""  # the Python that conda is asked for
    wheels: bool = False  # nothing is fetched: packages come from `wheelhouse`
    lock: Lock | None = None  # what the first node of the cluster has, for the others to have too

    @property
    def environment(self) -> str:
        return f"{self.root}/env"

    @property
    def wheelhouse(self) -> str:
        """Where wheels are put that the control plane pushes."""
        return f"{self.root}/wheels"

    @property
    def interpreter(self) -> str:
        """The environment's own Python."""
        return f"{self.environment}/bin/python"

    @property
    def models(self) -> str:
        return f"{self.root}/models"

    @property
    def cache(self) -> str:
        return f"{self.root}/cache"


@dataclass(frozen=True)
class Satisfied:
    """The facts show that there is nothing to do; ``detail`` says what was found."""

    detail: str


Recipe = Callable[[Facts, Site], Command | Satisfied]


@lru_cache
def asset(name: str) -> bytes:
    """A file that is shipped to nodes, from ``assets/``."""
    return files("nodes.recipes").joinpath("assets", name).read_bytes()


@lru_cache
def preset(engine: str) -> bytes:
    """The pinned package set of an engine (``cpu`` or ``cuda``), as a requirements file."""
    return files("nodes.recipes").joinpath("presets", f"{engine}.txt").read_bytes()
