"""What the browser is given: nothing inline, nothing from elsewhere, no library changed on the way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from django.conf import settings

from controlplane.management.commands.vendor_static import PACKAGES, integrity, vendor_dir

ROOT = Path(settings.BASE_DIR)
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
MODULES = sorted((ROOT / "static" / "js").glob("*.js"))
REMOTE = re.compile(r"""(?:src|href|url|import|from|fetch)\s*[=(]?\s*["'(]\s*(?:https?:)?//""")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", TEMPLATES, ids=name)
def test_a_template_has_no_inline_script_style_or_handler(path: Path) -> None:
    text = path.read_text()
    scripts = re.findall(r"<script\b([^>]*)>(.*?)</script>", text, re.S)
    assert all("src=" in attributes and not body.strip() for attributes, body in scripts)
    assert not re.search(r"<style\b|\sstyle\s*=|\son[a-z]+\s*=|\shx-on|javascript:", text, re.I)


@pytest.mark.parametrize("path", [*TEMPLATES, *MODULES, ROOT / "static" / "app.css"], ids=name)
def test_nothing_is_loaded_from_another_host(path: Path) -> None:
    assert not REMOTE.search(path.read_text())


@pytest.mark.parametrize("path", TEMPLATES, ids=name)
def test_everything_a_page_loads_exists(path: Path) -> None:
    for asset in re.findall(r"""{%\s*static\s+"([^"]+)"\s*%}""", path.read_text()):
        assert (ROOT / "static" / asset).is_file(), asset


def test_every_icon_that_is_used_is_drawn() -> None:
    drawn = set(re.findall(r'id="i-([a-z]+)"', (ROOT / "static" / "icons.svg").read_text()))
    used = {icon for path in TEMPLATES for icon in re.findall(r'{%\s*icon\s+"([a-z]+)"', path.read_text())}
    used |= {icon for path in TEMPLATES for icon in re.findall(r'picture="([a-z]+)"', path.read_text())}
    assert used <= drawn


def test_every_state_has_a_word_an_icon_and_a_tone() -> None:
    from controlplane.templatetags.deck import LOOKS
    from deployments.states import DeploymentState, ReplicaState
    from nodes.states import JobState, NodeState, RunState

    kinds = (NodeState, DeploymentState, ReplicaState, RunState, JobState)
    states = {str(state) for kind in kinds for state in kind}
    drawn = set(re.findall(r'id="i-([a-z]+)"', (ROOT / "static" / "icons.svg").read_text()))
    assert states <= set(LOOKS)
    assert {look.icon for look in LOOKS.values()} <= drawn


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_short_and_reads_no_html_from_strings(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 100
    assert not re.search(r"\beval\(|new Function|insertAdjacentHTML|document\.write", text)
    # painter.js escapes the text itself; everything else builds nodes.
    assert ("innerHTML" in text) == (path.name == "rows.js")


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_vendored_files_are_those_of_the_pinned_package(package: str) -> None:
    pinned = PACKAGES[package]
    folder = vendor_dir() / f"{package.removesuffix('.org')}-{pinned.version}"
    kept = json.loads((folder / "hashes.json").read_text())
    assert kept["package"] == pinned.integrity
    assert set(kept["files"]) == set(pinned.files.values())
    for file, expected in kept["files"].items():
        assert integrity((folder / file).read_bytes()) == expected
    assert (folder / "LICENSE").stat().st_size > 500


def test_no_library_is_kept_that_nothing_pins() -> None:
    pinned = {f"{package.removesuffix('.org')}-{at.version}" for package, at in PACKAGES.items()}
    assert {folder.name for folder in vendor_dir().iterdir()} == pinned
