"""Blocks that Quarterdeck keeps in files that are not its own: between two marks, everything else untouched. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from nodes.facts import Facts
from nodes.recipes import asset
from nodes.remote.command import Command, script

_EDIT = 'exec python3 "$QD_JOB/edit_blocks.py" "$QD_JOB/edits.json"'


@dataclass(frozen=True)
class Block:
    """A block of a file: ``body`` between the marks of ``name``, at the file's top or end; no body, no block."""

    path: str  # absolute, or from the user's home: "~/.ssh/config"
    name: str
    body: str
    top: bool = False
    mode: int = 0o600  # of a file that was not there

    @property
    def file(self) -> str:
        """What `Facts.blocks` calls the file."""
        return self.path.rpartition("/")[2]

    def there(self, facts: Facts) -> bool:
        return facts.blocks.get(self.file, {}).get(self.name, "") == self.body


def block_name(text: str) -> str:
    """A cluster's name as it may stand in a mark and in a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def edit(*blocks: Block, files: Mapping[str, bytes] | None = None, gone: tuple[str, ...] = ()) -> Command:
    """Bring blocks to what they should be, put ``files`` (path → content, mode 0600) and take ``gone`` away.

    Each file is replaced as a whole or not at all, and stays who it belongs to and how it is guarded.
    """
    contents = dict(files or {})
    put = {f"file{number}": path for number, path in enumerate(contents)}
    orders = {"blocks": [asdict(block) for block in blocks], "put": put, "gone": list(gone)}
    carried = {name: contents[path] for name, path in put.items()}
    return script(_EDIT).with_files(
        {"edit_blocks.py": asset("edit_blocks.py"), "edits.json": json.dumps(orders).encode(), **carried})


def drop_lines(patterns: Mapping[str, str]) -> Command:
    """Take lines out of all of Quarterdeck's blocks in some files (path → regular expression), as they are by then.

    The others of a block stay, whoever else edits it at the same time.
    """
    orders = json.dumps({"blocks": [], "put": {}, "gone": [], "drop": dict(patterns)})
    return script(_EDIT).with_files({"edit_blocks.py": asset("edit_blocks.py"), "edits.json": orders.encode()})
