"""What Quarterdeck put on a node, taken away again: one function for each thing, found by its marks. Pure.

What others may have come to use stays: packages of the system, the host's name, a conda or an environment that lies
outside of Quarterdeck's own directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

from django.utils.translation import gettext as _

from nodes.facts import Facts
from nodes.recipes import Satisfied, Site, blocks, ray, trust
from nodes.recipes.blocks import Block
from nodes.remote.command import Command, script

_SIGNAL = files("nodes.remote").joinpath("signal_job.py").read_bytes()
# Its own job is the last that is there: it goes with the key, once its log was read to the end.
_FILES = """
root=$1 kept=$2
[ -d "$root" ] || { echo "There is no $root."; exit 0; }
own=$(basename "$QD_JOB")
for job in "$root"/jobs/*; do
    [ -d "$job" ] && [ "$(basename "$job")" != "$own" ] || continue
    ended=$(python3 "$QD_JOB/signal_job.py" "$job" 9) || ended=0
    [ "${ended:-0}" = 0 ] || echo "$job: $ended processes ended"
    rm -rf "$job"
done
for thing in "$root"/* "$root"/.[!.]*; do
    [ -e "$thing" ] || [ -L "$thing" ] || continue
    case "$(basename "$thing")" in
        jobs) ;;
        "$kept") echo "$thing: kept" ;;
        *) echo "$thing: $(du -sh "$thing" 2>/dev/null | cut -f 1), removed"; rm -rf "$thing" ;;
    esac
done
rm -rf "$3"
"""
# rmdir leaves what is not empty: models that are to stay, or what somebody else put there.
_LAST = """
f="$HOME/.ssh/authorized_keys"
rm -rf "$1/jobs"
[ -L "$1" ] || rmdir "$1" 2> /dev/null || :
[ -f "$f" ] || exit 0
umask 077
new="$f.quarterdeck"
cp -p "$f" "$new"
{ LC_ALL=C grep -vxF "$2" "$f" || [ $? -eq 1 ]; } > "$new" || { rm -f "$new"; exit 1; }
mv "$new" "$f"
"""
_KEY_FILES = ("authorized_keys", "known_hosts", "config")
#: Files in which nodes are named, and where they lie.
_KNOWING_FILES = {"hosts": "/etc/hosts", "known_hosts": "~/.ssh/known_hosts", "config": "~/.ssh/config"}


def hosts_file(facts: Facts, site: Site) -> Command | Satisfied:
    """The names of other nodes in /etc/hosts. Needs root."""
    there = facts.blocks.get("hosts", {})
    return blocks.edit(*(Block("/etc/hosts", name, "") for name in there)) if there else _nothing()


def cluster_trust(facts: Facts, site: Site) -> Command | Satisfied:
    """The cluster's key and what lets its nodes sign in to each other: blocks of three files in ~/.ssh."""
    names = {name for file in _KEY_FILES for name in facts.blocks.get(file, {})} | set(facts.cluster_keys)
    gone = tuple(path for name in sorted(names) for path in (trust.key_path(name), f"{trust.key_path(name)}.pub"))
    emptied = [Block(f"~/.ssh/{file}", name, "") for name in sorted(names) for file in _KEY_FILES]
    return blocks.edit(*emptied, gone=gone) if names else _nothing()


def knows(blocks_there: Mapping[str, Mapping[str, str]], name: str) -> bool:
    """Whether these blocks (file → block → content) tell of the node called ``name``."""
    bodies = [(file, body) for file, found in blocks_there.items() for body in found.values() if file in _KNOWING_FILES]
    return any(re.search(_lines_about(file, name), body, re.MULTILINE) for file, body in bodies)


def name_elsewhere(facts: Facts, name: str) -> Command | Satisfied:
    """The node ``name``, taken out of another one's /etc/hosts. Needs root."""
    return _forgotten(facts, name, ("hosts",))


def trust_elsewhere(facts: Facts, name: str) -> Command | Satisfied:
    """The node ``name``, taken out of what another one's SSH knows: its host key, and how it is reached."""
    return _forgotten(facts, name, ("known_hosts", "config"))


def _forgotten(facts: Facts, name: str, files: Sequence[str]) -> Command | Satisfied:
    there = [file for file in files if knows({file: facts.blocks.get(file, {})}, name)]
    if not there:
        return Satisfied(_("it does not know %(node)s") % {"node": name})
    return blocks.drop_lines({_KNOWING_FILES[file]: _lines_about(file, name) for file in there})


def _lines_about(file: str, name: str) -> str:
    """The lines about a node, as a regular expression: as `recipes.hosts_file` and `recipes.trust` write them."""
    return {
        "hosts": rf"^\S+ {re.escape(name)}(?: .*)?\n",
        "known_hosts": rf"^\[?{re.escape(name)}[],\s].*\n",
        "config": rf"^Host {re.escape(name)}(?: .*)?\n(?:  .*\n)*",
    }[file]


def own_files(facts: Facts, site: Site, *, models: bool) -> Command:
    """All jobs, with what of them still runs; the environment, caches and, if wanted, the ``models``."""
    kept = "" if models else site.models.rpartition("/")[2]
    return script(_FILES, site.root, kept, ray.directory(site)).with_files({"signal_job.py": _SIGNAL})


def own_key(site: Site, line: str) -> Command:
    """The last of it: the directory where it is empty by now, and Quarterdeck's ``line`` in authorized_keys."""
    return script(_LAST, site.root, line)


def _nothing() -> Satisfied:
    return Satisfied(_("nothing of Quarterdeck is there"))
