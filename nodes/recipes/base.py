"""What steps and engines need of the operating system: a C compiler, Python's parts, git, curl, rsync. Pure."""

from __future__ import annotations

from django.utils.translation import gettext as _

from controlplane.problems import Problem
from nodes.facts import Facts
from nodes.recipes import Satisfied
from nodes.remote.command import Command, script

#: Tool → the packages it comes in, with each package manager.
_TOOLS: dict[str, dict[str, tuple[str, ...]]] = {
    "apt-get": {"cc": ("build-essential",), "git": ("git",), "curl": ("curl",), "rsync": ("rsync",)},
    "dnf": {"cc": ("gcc", "gcc-c++", "make"), "git": ("git",), "curl": ("curl",), "rsync": ("rsync",)},
}
_INSTALL = {
    "apt-get": """
export DEBIAN_FRONTEND=noninteractive
apt-get -q -o DPkg::Lock::Timeout=300 update || echo "The lists were not fetched; going on with the old ones."
exec apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
""",
    "dnf": 'exec dnf -y install "$@"',
}


def base_packages(facts: Facts) -> Command | Satisfied:
    """What is missing, installed by the system's own package manager; needs root. Raises `Problem` without one."""
    missing = _missing(facts)
    if not missing:
        return Satisfied(", ".join(facts.tools))
    if facts.package_manager not in _INSTALL:
        raise Problem(
            _("There is neither apt nor dnf here to install %(tools)s with.") % {"tools": ", ".join(missing)},
            _("Install them by hand, or prepare the node without its base packages."),
        )
    return script(_INSTALL[facts.package_manager], *_packages(facts, missing))


def _missing(facts: Facts) -> list[str]:
    tools = [tool for tool in _TOOLS["apt-get"] if tool not in facts.tools]
    parts = {"venv": facts.python_has_venv, "headers": facts.python_has_headers}
    return tools + [part for part, there in parts.items() if not there and _is_the_systems(facts)]


def _is_the_systems(facts: Facts) -> bool:
    """Whether the Python that is used came with the system: only then do its packages complete it."""
    return facts.python_path.startswith(("/usr/bin/", "/bin/")) or not facts.python


def _packages(facts: Facts, missing: list[str]) -> list[str]:
    """The packages, in an order that does not change."""
    name = f"python{'.'.join(facts.python.split('.')[:2])}" if facts.python else "python3"
    parts: dict[str, dict[str, tuple[str, ...]]] = {
        "apt-get": {"venv": ("python3", f"{name}-venv"), "headers": (f"{name}-dev",)},
        "dnf": {"venv": (name,), "headers": (f"{name}-devel",)},
    }
    known = {**_TOOLS[facts.package_manager], **parts[facts.package_manager]}
    return list(dict.fromkeys(package for part in missing for package in known[part]))
