"""Nodes of a cluster that may sign in to each other: one key pair a cluster, and each other's pinned host keys. Pure.

No root is needed: everything lies in the user's ~/.ssh, in blocks that are taken away again. Each node checks the
others' host keys strictly, against those that a person approved here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.secrets import Secret
from nodes.facts import Facts
from nodes.recipes import Satisfied, blocks
from nodes.recipes.blocks import Block
from nodes.remote.command import Command


@dataclass(frozen=True)
class Peer:
    """A node that others sign in to."""

    name: str
    address: str
    port: int
    user: str
    host_key: str  # pinned: "ssh-ed25519 AAAA…"

    def __post_init__(self) -> None:
        """Each is one word of a line in other programs' files. Raises ValueError for what would be more."""
        words = (self.name, self.address, self.user, *self.host_key.split(" "))
        if any(not word or not word.isprintable() or set(word) & set(" #,*?!\"'\\") for word in words):
            raise ValueError("this cannot stand in SSH's files")


def key_path(name: str) -> str:
    return f"~/.ssh/quarterdeck_{name}"


def trust(facts: Facts, name: str, peers: Sequence[Peer], public: str, private: Secret) -> Command | Satisfied:
    """The cluster's key, its permission, the pinned host keys and how to reach each peer by its name."""
    wanted = _blocks(name, peers, public)
    has_key = facts.cluster_keys.get(name, "") == public
    if has_key and all(block.there(facts) for block in wanted):
        return Satisfied(f"{len(peers)} × known_hosts")
    keys = {key_path(name): private.reveal().encode(), f"{key_path(name)}.pub": f"{public}\n".encode()}
    return blocks.edit(*wanted, files={} if has_key else keys)


def removal(name: str) -> Command:
    """Take all of it away again."""
    empty = [Block(block.path, name, "") for block in _blocks(name, (), "")]
    return blocks.edit(*empty, gone=(key_path(name), f"{key_path(name)}.pub"))


def _blocks(name: str, peers: Sequence[Peer], public: str) -> list[Block]:
    return [
        Block("~/.ssh/authorized_keys", name, f"restrict,pty {public}\n"),
        Block("~/.ssh/known_hosts", name, "".join(map(_known_host, peers))),
        # "Host *" gives what stands below, which belongs to no host's section, back to all hosts.
        Block("~/.ssh/config", name, "".join(_section(name, peer) for peer in peers) + "Host *\n", top=True),
    ]


def _known_host(peer: Peer) -> str:
    names = dict.fromkeys((peer.name, peer.address))
    shown = [found if peer.port == 22 else f"[{found}]:{peer.port}" for found in names]
    return f"{','.join(shown)} {peer.host_key}\n"


def _section(name: str, peer: Peer) -> str:
    lines = {
        "Host": " ".join(dict.fromkeys((peer.name, peer.address))),
        "  HostName": peer.address,
        "  Port": str(peer.port),
        "  User": peer.user,
        "  IdentityFile": key_path(name),
        "  StrictHostKeyChecking": "yes",
    }
    return "".join(f"{key} {value}\n" for key, value in lines.items())
