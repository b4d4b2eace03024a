"""Wheels for nodes without a network: kept here in one directory, pushed over SFTP, checked there.

A push takes minutes, so it goes in slices of seconds: each goes on at the byte where the last one, or one that was
killed, stopped. A wheel gets its name once its checksum is right, so what has a name is complete.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from django.conf import settings
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from nodes import preparation, runs
from nodes.hosts import shared_host
from nodes.models import Node, Step
from nodes.recipes import Satisfied, Site, python_env
from nodes.recipes.wheelhouse import choose
from nodes.remote.command import python, script
from nodes.remote.host import ask
from nodes.runs import Done, StepKind, Waiting

SLICE_SECONDS = 4.0
PIECE = 1 << 18
MIB = 1024**2
_NOT_THE_SAME = 3

_LIST = """
import json, os, sys
os.makedirs(sys.argv[1], exist_ok=True)
print(json.dumps({entry.name: entry.stat().st_size for entry in os.scandir(sys.argv[1]) if entry.is_file()}))
"""
_NAME = """
sum=$(sha256sum < "$1")
if [ "${sum%% *}" = "$3" ]; then mv "$1" "$2"; else rm -f "$1"; exit 3; fi
"""


def wanted(node: Node) -> list[Path]:
    """The wheels that the node's set of packages consists of. Raises `Problem` naming those that are not here."""
    site = preparation.site_with_lock(node)
    pins, version = python_env.pins(node.facts.engine, site), _python(node, site)
    there = {path.name: path for path in settings.WHEELHOUSE.glob("*.whl")}
    chosen, missing = choose(there, pins, node.facts, version)
    if missing:
        some = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise Problem(
            _("%(count)d of %(all)d wheels for Python %(python)s are not in the wheelhouse: %(some)s")
            % {"count": len(missing), "all": len(pins), "python": version, "some": some},
            _("Where Quarterdeck runs and there is a network: manage.py wheels %(engine)s --python %(python)s")
            % {"engine": node.facts.engine, "python": ".".join(version.split(".")[:2])},
        )
    return [there[name] for name in chosen]


def _python(node: Node, site: Site) -> str:
    return (site.lock.python if site.lock else "") or site.conda_python or node.facts.python


def _begin(step: Step) -> Satisfied | Waiting:
    if isinstance(python_env.packages(step.node.facts, preparation.site_with_lock(step.node)), Satisfied):
        return Satisfied(_("the packages are installed already"))
    files = wanted(step.node)
    missing = _missing(files, _there(step.node))
    if not missing:
        return Satisfied(_("%(count)d wheels are there") % {"count": len(files)})
    needed = sum(path.stat().st_size for path in missing)
    if 0 < step.node.facts.disk_free < needed:
        raise Problem(
            _("The wheels need %(needed)d MiB, and %(free)d are free there.")
            % {"needed": needed // MIB, "free": step.node.facts.disk_free // MIB},
            _("Free space on the server, then prepare it again."))
    return Waiting(_("%(count)d wheels, %(mib)d MiB to push") % {"count": len(missing), "mib": needed // MIB})


def _push(step: Step) -> Done | Waiting:
    """Push for some seconds. Said again, it goes on."""
    node, end = step.node, time.monotonic() + SLICE_SECONDS
    files, there = wanted(node), _there(node)
    for path in _missing(files, there):
        if time.monotonic() >= end or not _push_one(node, path, there.get(f"{path.name}.part", 0), end):
            break
    there = _there(node)
    if not _missing(files, there):
        return Done(_("%(count)d wheels are there") % {"count": len(files)})
    runs.queue(step.run_id)  # at once, not when watch asks
    return Waiting(_progress(files, there))


def _progress(files: list[Path], there: Mapping[str, int]) -> str:
    sizes = {path.name: path.stat().st_size for path in files}
    pushed = sum(min(size, there.get(name, there.get(f"{name}.part", 0))) for name, size in sizes.items())
    now = next((path.name for path in files if f"{path.name}.part" in there), "")
    return _("%(pushed)d of %(all)d MiB pushed; %(name)s") % {
        "pushed": pushed // MIB, "all": sum(sizes.values()) // MIB, "name": now.partition("-")[0] or "…"}


def _there(node: Node) -> dict[str, int]:
    """Name → size of what lies in the node's wheelhouse, unfinished ones as "….part"."""
    answer = ask(shared_host(node), python("python3", _LIST, preparation.site(node).wheelhouse))
    found: dict[str, int] = json.loads(answer.text.strip().splitlines()[-1])
    return found


def _missing(files: list[Path], there: Mapping[str, int]) -> list[Path]:
    return [path for path in files if there.get(path.name) != path.stat().st_size]


def _push_one(node: Node, path: Path, at: int, end: float) -> bool:
    """Push a wheel from byte ``at`` on, or a piece of it until ``end``; True once it has its name there."""
    size, place = path.stat().st_size, f"{preparation.site(node).wheelhouse}/{path.name}"
    if at > size:  # of another wheel that had this name
        ask(shared_host(node), script("rm -f \"$1\"", f"{place}.part"))
        at = 0
    sent = _Slice(path, at, end)
    shared_host(node).put(f"{place}.part", sent.at, iter(sent))
    if sent.at < size:
        return False
    named = shared_host(node).run(script(_NAME, f"{place}.part", place, checksum(path)), timeout=60)
    if named.status == _NOT_THE_SAME:
        raise Problem(
            _("%(name)s did not arrive as it was sent.") % {"name": path.name},
            _("Prepare the node again: it is pushed anew. If that goes on, look at its disk and its memory."))
    return named.status == 0


class _Slice:
    """The bytes of a file from ``at`` on, until the time is over; at least one piece."""

    def __init__(self, path: Path, at: int, end: float) -> None:
        self.path, self.at, self.end = path, at, end

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.at)
            while piece := file.read(PIECE):
                yield piece
                self.at += len(piece)
                if time.monotonic() >= self.end:
                    return


def checksum(path: Path) -> str:
    """The file's SHA-256, computed once as long as the file stays as it is."""
    stat = path.stat()
    return _checksum(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _checksum(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


runs.register(StepKind("wheels", gettext_lazy("Wheels, pushed over SFTP"), _begin, _push))
