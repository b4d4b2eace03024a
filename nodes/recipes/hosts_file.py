"""A node's own name, and the names of the nodes around it in /etc/hosts. Needs root. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nodes.facts import Facts
from nodes.recipes import Satisfied, blocks
from nodes.recipes.blocks import Block
from nodes.remote.command import Command, script

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")
_RENAME = """
hostnamectl set-hostname "$1" 2>/dev/null || { echo "$1" > /etc/hostname && hostname "$1"; }
echo "This host is called $1."
"""
_BOTH = """
sh -euc "$1" sh "$2"
exec python3 "$QD_JOB/edit_blocks.py" "$QD_JOB/edits.json"
"""


@dataclass(frozen=True)
class Named:
    """A node as others know it: its name here, its address among them, and what it calls itself."""

    name: str
    address: str
    hostname: str = ""


def block(name: str, nodes: Sequence[Named]) -> Block:
    """The block of /etc/hosts. At the top, since the first line with a name wins: Debian has 127.0.1.1 for its own."""
    times = Counter(node.hostname for node in nodes)
    lines = [
        f"{node.address} {node.name}" + (f" {node.hostname}" if _is_its_own(node, times) else "") + "\n"
        for node in sorted(nodes, key=lambda node: node.name)
        if _is_address(node.address)
    ]
    return Block("/etc/hosts", name, "".join(lines), top=True, mode=0o644)


def _is_its_own(node: Named, times: Counter[str]) -> bool:
    """A name goes into other nodes' files: one that a node made up to be more than a name does not."""
    proper = _NAME.fullmatch(node.hostname) and node.hostname not in (node.name, "localhost")
    return bool(proper) and times[node.hostname] == 1


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def names(facts: Facts, name: str, nodes: Sequence[Named], hostname: str = "") -> Command | Satisfied:
    """The block ``name`` with these nodes, and the host's own name where ``hostname`` is given."""
    wanted, rename = block(name, nodes), hostname not in ("", facts.hostname)
    if wanted.there(facts) and not rename:
        return Satisfied(f"{len(nodes)} × /etc/hosts")
    edited = blocks.edit(wanted)
    return script(_BOTH, _RENAME, hostname).with_files(edited.files) if rename else edited


def removal(name: str) -> Command:
    """Take the block away again."""
    return blocks.edit(Block("/etc/hosts", name, ""))
