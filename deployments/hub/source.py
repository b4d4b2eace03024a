"""Which model of which hub, and of its files those that serving needs. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import NamedTuple, Self

from django.utils.translation import gettext as _

from controlplane.problems import Problem

_ID = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./-]{0,99}", re.ASCII)
_FILE = re.compile(r"[^\x00-\x1f\\]{1,400}")
_MOST_FILES = 5_000
#: Weights in other formats than vLLM's first choice; only wanted where that is missing.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth")
#: Never read by vLLM: other frameworks' weights, pictures, samples.
_NEVER = (".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite", ".png", ".jpg", ".gif", ".mp4", ".pdf", ".md")


class Hub(StrEnum):
    """The hubs whose file API is spoken. The value begins a deployment's ``model``: "hf:Qwen/Qwen2.5-0.5B"."""

    HUGGING_FACE = "hf"
    MODELSCOPE = "ms"

    @property
    def label(self) -> str:
        return {"hf": "Hugging Face", "ms": "ModelScope"}[self]

    @property
    def default_revision(self) -> str:
        return {"hf": "main", "ms": "master"}[self]


@dataclass(frozen=True)
class HubModel:
    """A model of a hub. ``revision`` is a branch, tag or commit; empty: the hub's default branch."""

    hub: Hub
    id: str
    revision: str = ""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise Problem(
                _("“%(id)s” is not the id of a model on %(hub)s.") % {"id": self.id[:80], "hub": self.hub.label},
                _("Write it as its page does, for example Qwen/Qwen2.5-0.5B-Instruct."),
            )
        if self.revision and not _REVISION.fullmatch(self.revision):
            raise Problem(
                _("“%(revision)s” is not a revision.") % {"revision": self.revision[:80]},
                _("Give a branch, a tag or a commit, or leave it out."),
            )

    @classmethod
    def parse(cls, model: str) -> Self | None:
        """What a deployment's ``model`` names; None where that is no hub's. Raises `Problem` for an impossible id."""
        prefix, colon, rest = model.partition(":")
        if not colon or prefix not in set(Hub):
            return None
        name, _at, revision = rest.partition("@")
        return cls(Hub(prefix), name, revision)

    def __str__(self) -> str:
        return f"{self.hub}:{self.id}" + (f"@{self.revision}" if self.revision else "")

    @property
    def wanted_revision(self) -> str:
        return self.revision or self.hub.default_revision

    @property
    def directory(self) -> str:
        """The name of its directory on nodes: one path component."""
        return str(self).replace(":", "--", 1).replace("/", "--")


class ModelFile(NamedTuple):
    """One file of a model: path below its directory, bytes, SHA-256 in hex ("" where the hub does not say)."""

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class Listing:
    """What a hub has of a model: the commit, and the files that serving needs."""

    commit: str
    files: tuple[ModelFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def tensor_bytes(self) -> int | None:
        """Bytes of its weights, near enough for a plan: safetensors files hold little else. None without any."""
        return sum(file.size for file in self.files if file.path.endswith(".safetensors")) or None


def wanted(files: Sequence[ModelFile]) -> tuple[ModelFile, ...]:
    """Of a repository's files those that vLLM reads. Raises `Problem` for a listing nobody should follow."""
    if len(files) > _MOST_FILES:
        raise Problem(_("The hub lists %(count)d files, too many for a model.") % {"count": len(files)})
    kept = [file for file in files if _is_read(file.path)]
    if any(file.path.endswith(".safetensors") for file in kept):
        kept = [file for file in kept if not file.path.endswith(_OTHER_WEIGHTS)]
    if any(file.path.startswith("model") and file.path.endswith(".safetensors") for file in kept):
        kept = [file for file in kept if not file.path.startswith("consolidated")]  # the same weights, twice
    return tuple(sorted(kept))


def _is_read(path: str) -> bool:
    parts = PurePosixPath(path).parts
    if not _FILE.fullmatch(path) or path.startswith("/") or ".." in parts:
        raise Problem(
            _("The hub lists a file that would lie outside the model's directory: %(path)r.") % {"path": path[:80]},
            _("Do not use this model; tell the hub."),
        )
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and parts[0] not in ("original", "onnx") and not path.lower().endswith(_NEVER)
