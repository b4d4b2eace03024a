"""The real engine and the demo model, installed once on this machine, for the hosts of a lab to share."""

from __future__ import annotations

import re
import time
import uuid
from pathlib import Path

from nodes.facts import PROBE, Facts, probe_answer
from nodes.recipes import Recipe, Site, models
from nodes.recipes import python_env as env
from nodes.remote import job
from nodes.remote.command import Command, python
from nodes.remote.host import ask
from nodes.remote.local import LocalHost
from tests.lab.host import until

RECIPES: tuple[Recipe, ...] = (env.environment, env.packages, env.verification, models.demo_model)


def install(root: Path) -> None:
    """Bring ``root`` to where a node's own directory is when it was prepared and has the demo model."""
    for recipe in RECIPES:
        wanted = recipe(_facts(root), Site(str(root)))
        if isinstance(wanted, Command):
            _run(root, wanted)


def shared(root: Path) -> dict[str, Path]:
    """What a lab's hosts share of it: as their own, and by the path that its programs know themselves by."""
    own = {f"/root/.quarterdeck/{name}": root / name for name in ("env", "models")}
    return {**own, str(root / "env"): root / "env", **_interpreter(root)}


def _interpreter(root: Path) -> dict[str, Path]:
    """The Python that the environment was made with, where a host does not have it anyway."""
    home = re.search(r"^home = (.+)$", (root / "env/pyvenv.cfg").read_text(), re.MULTILINE)
    assert home
    prefix = Path(home[1]).parent
    return {} if prefix == Path("/usr") else {str(prefix): prefix}


def _facts(root: Path) -> Facts:
    sent = time.time()
    answer = ask(LocalHost(), python("python3", PROBE, str(root)), timeout=60)
    return Facts.from_json(probe_answer(answer.text, sent, time.time()))


def _run(root: Path, command: Command) -> None:
    place = root / "jobs" / str(uuid.uuid4())
    job.start(LocalHost(), str(place), command)
    until((place / "exit").exists, 900, f"{place} ends")
    assert int((place / "exit").read_text()) == 0, (place / "log").read_text()[-2000:]
