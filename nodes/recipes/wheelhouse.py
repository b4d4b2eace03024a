"""Which wheels of the control plane's directory a node needs: those of the pinned set that fit its Python. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from nodes.facts import Facts

_OLDEST_GLIBC = 5  # minor version of manylinux_2_5, the first there is


def choose(names: Iterable[str], pins: Mapping[str, str], facts: Facts, python: str) -> tuple[list[str], list[str]]:
    """The file of each pin, and the pins ("torch==2.13.0") that no file is there for."""
    ranks = {tag: rank for rank, tag in enumerate(tags(facts, python))}
    found: dict[tuple[str, Version], list[tuple[int, str]]] = {}
    for name in names:
        for key, rank in _parsed(name, ranks):
            found.setdefault(key, []).append((rank, name))
    wanted = {f"{name}=={version}": (canonicalize_name(name), Version(version)) for name, version in pins.items()}
    chosen = [min(found[key])[1] for key in wanted.values() if key in found]
    return sorted(chosen), [pin for pin, key in wanted.items() if key not in found]


def _parsed(name: str, ranks: Mapping[Tag, int]) -> Iterable[tuple[tuple[str, Version], int]]:
    """What a wheel is and how well it fits; nothing for what is no wheel or does not fit."""
    try:
        package, version, _build, its_tags = parse_wheel_filename(name)
    except (InvalidWheelFilename, InvalidVersion):
        return
    fitting = [ranks[tag] for tag in its_tags if tag in ranks]
    if fitting:
        yield (package, version), min(fitting)


def tags(facts: Facts, python: str) -> list[Tag]:
    """The tags that the node's Python takes, the best first."""
    version = tuple(int(part) for part in (python or "3.12").split(".")[:2])
    kinds = platforms(facts)
    interpreter = f"cp{version[0]}{version[1]}"
    return [*cpython_tags(version, platforms=kinds), *compatible_tags(version, interpreter, kinds)]


def platforms(facts: Facts) -> list[str]:
    """The platforms whose wheels run there: as old as the node's C library, or older."""
    minor = int((facts.glibc or "2.28").split(".")[1])
    machine = facts.machine or "x86_64"
    old = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    found = []
    for number in range(minor, _OLDEST_GLIBC - 1, -1):
        found.append(f"manylinux_2_{number}_{machine}")
        found += [f"{old[number]}_{machine}"] if number in old else []
    return [*found, f"linux_{machine}"]
