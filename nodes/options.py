"""How a person wants a node prepared; remembered on it. The defaults change nothing outside its directory. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Self


@dataclass(frozen=True)
class Options:
    """What the Prepare dialog asks. Addresses of indexes may hold passwords: kept encrypted, never shown whole."""

    kind: str = "venv"  # how the Python environment is made: "venv", "conda", "existing"
    path: str = ""  # conda: its prefix; existing: the environment's directory
    installer: str = ""  # conda: a URL, or a path on the node; empty: the installation's setting
    python: str = ""  # conda: the version it is asked for
    index: str = ""  # empty: the installation's setting, else what pip on the node is configured for
    extra_index: str = ""
    wheelhouse: bool = False  # packages are pushed over SFTP, nothing is fetched by the node
    base: bool = False  # needs root
    hostname: bool = False  # needs root
    hosts: bool = False  # needs root
    trust: bool = False

    @classmethod
    def from_text(cls, text: str) -> Self:
        """What `to_text` made, whatever is missing from it or unknown in it."""
        data = json.loads(text) if text else {}
        return cls(**{item.name: data[item.name] for item in fields(cls) if item.name in data})

    def to_text(self) -> str:
        return json.dumps(asdict(self))
