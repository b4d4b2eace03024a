"""``manage.py vendor_static``: take the browser libraries from their npm packages into static/vendor.

Pinned by version and by the package's own integrity hash. The files are committed, so that running
Quarterdeck needs neither npm nor a CDN. Run it after changing `PACKAGES`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError


class Package(NamedTuple):
    """An npm package and the files taken from it (path in the package → name here)."""

    version: str
    integrity: str
    files: dict[str, str]


PACKAGES = {
    "htmx.org": Package(
        "2.0.11",
        "sha512-Thx/WtpeOQqSrqBCw/A1cwGJGg4UrVa3+sW0GmrM3p4gJgO89ecH4qtbnyzDDWFvBTqjnIMCgELTNt636dtamA==",
        {"dist/htmx.min.js": "htmx.min.js", "LICENSE": "LICENSE"},
    ),
    "uplot": Package(
        "1.6.32",
        "sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
        {
            "dist/uPlot.iife.min.js": "uplot.min.js",
            "dist/uPlot.min.css": "uplot.min.css",
            "LICENSE": "LICENSE",
        },
    ),
    "ansi_up": Package(
        "6.0.6",
        "sha512-yIa1x3Ecf8jWP4UWEunNjqNX6gzE4vg2gGz+xqRGY+TBSucnYp6RRdPV4brmtg6bQ1ljD48mZ5iGSEj7QEpRKA==",
        {"ansi_up.js": "ansi_up.js", "LICENSE": "LICENSE"},
    ),
}


def vendor_dir() -> Path:
    return Path(settings.BASE_DIR) / "static" / "vendor"


def integrity(data: bytes, algorithm: str = "sha512") -> str:
    """The hash of ``data`` in npm's form: ``sha512-…``, base64."""
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


class Command(BaseCommand):
    requires_system_checks = ()  # it needs no database and no address
    help = "Take the pinned browser libraries from their npm packages into static/vendor."

    def handle(self, *args: Any, **options: Any) -> None:
        if shutil.which("npm") is None:
            raise CommandError("npm is not installed: vendor_static fetches packages with npm pack.")
        for name, package in PACKAGES.items():
            with tempfile.TemporaryDirectory() as scratch:
                self._take(name, package, Path(scratch))

    def _take(self, name: str, package: Package, scratch: Path) -> None:
        subprocess.run(
            ["npm", "pack", "--silent", f"{name}@{package.version}"], cwd=scratch, check=True, timeout=300
        )
        (archive,) = scratch.glob("*.tgz")
        found = integrity(archive.read_bytes())
        if found != package.integrity:
            raise CommandError(f"{name} {package.version} has the hash {found}, not {package.integrity}.")
        target = vendor_dir() / f"{name.removesuffix('.org')}-{package.version}"
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as files:
            hashes = {here: _copy(files, there, target / here) for there, here in package.files.items()}
        (target / "hashes.json").write_text(json.dumps({"package": found, "files": hashes}, indent=2) + "\n")
        self.stdout.write(f"{name} {package.version} → {target}")


def _copy(files: tarfile.TarFile, source: str, target: Path) -> str:
    """Write one file of the package; returns its hash."""
    member = files.extractfile(f"package/{source}")
    if member is None:
        raise CommandError(f"The package has no file {source}.")
    data = member.read()
    target.write_bytes(data)
    return integrity(data)
