"""Why a job failed, as a sentence: in its own last line, or that the disk it writes to is full."""

from __future__ import annotations

from contextlib import suppress

from django.utils.translation import gettext as _

from nodes import logs
from nodes.hosts import shared_host
from nodes.models import Job, Node
from nodes.remote.command import script
from nodes.remote.errors import HostProblem
from nodes.remote.host import ask
from nodes.states import JobState

#: With less than this nothing can be installed, or even logged.
_NEARLY_NOTHING = 2 * 2**20
_NO_SPACE = ("No space left on device", "Disk quota exceeded")
#: Free bytes where the job writes; its directory may not have been made any more.
_FREE = """
at=$1
while ! [ -d "$at" ]; do at=$(dirname "$at"); done
df -Pk "$at" | awk 'END { printf "%d", $4 * 1024 }'
"""


def last_words(job: Job) -> str:
    """Why a job failed, in its own last line."""
    if job.state == JobState.LOST:
        return _("The process is gone and left no exit status: it was killed, or the server was restarted.")
    lines = [line.strip() for line in logs.tail(job).replace("\r", "\n").splitlines() if line.strip()]
    said = lines[-1][:300] if lines else _("it printed nothing")
    return _("ended with status %(status)s: %(said)s") % {"status": job.exit_status, "said": said}


def full_disk(node: Node, said: str = "") -> str:
    """What to tell where the node's disk is full, empty where it is not. ``said`` is what the failed command printed.

    Programs say it in the middle of their output, and what stands last is about something else; a disk that is quite
    full keeps no log at all.
    """
    free = _free(node)
    if (free is None or free > _NEARLY_NOTHING) and not any(words in said for words in _NO_SPACE):
        return ""
    what = _("The disk of %(node)s is full: %(free)d MB are free where %(root)s lies.") % {
        "node": node.name, "free": (free or 0) // 2**20, "root": node.root_dir}
    return f"{what}\n" + _("Make room there, then start again: what was done already is kept.")


def _free(node: Node) -> int | None:
    with suppress(HostProblem, ValueError):
        return int(ask(shared_host(node), script(_FREE, node.root_dir)).text)
    return None
