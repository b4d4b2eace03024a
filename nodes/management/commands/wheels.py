"""``manage.py wheels cpu --python 3.12``: fetch a pinned set into the wheelhouse, for nodes without a network."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from nodes.facts import Facts
from nodes.recipes import preset
from nodes.recipes.wheelhouse import platforms


class Command(BaseCommand):
    help = "Fetch the wheels of a pinned package set into the wheelhouse, with this machine's own pip."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("engine", choices=["cpu", "cuda"])
        parser.add_argument("--python", default="3.12", help="the nodes' Python, as 3.12")
        parser.add_argument("--machine", default="x86_64", help="the nodes' processors: x86_64 or aarch64")
        parser.add_argument("--glibc", default="2.31", help="the nodes' C library, or an older one")

    def handle(self, *args: Any, **options: Any) -> None:
        settings.WHEELHOUSE.mkdir(parents=True, exist_ok=True)
        where = platforms(Facts(machine=options["machine"], glibc=options["glibc"]))
        words = ["--no-deps", "--only-binary", ":all:", "--python-version", options["python"], "--dest",
                 str(settings.WHEELHOUSE), *(f"--platform={one}" for one in where)]  # fmt: skip
        if options["engine"] == "cpu" and settings.TORCH_CPU_INDEX:
            words += ["--extra-index-url", settings.TORCH_CPU_INDEX]
        if settings.PIP_INDEX:
            words += ["--index-url", settings.PIP_INDEX]
        with tempfile.TemporaryDirectory() as folder:
            pins = Path(folder, "pins.txt")
            pins.write_bytes(preset(options["engine"]))
            done = subprocess.run([sys.executable, "-m", "pip", "download", "-r", str(pins), *words])
        if done.returncode:
            raise CommandError("pip's lines above say which wheel it could not fetch. What it did fetch is kept.")
        self.stdout.write(f"{sum(1 for _ in settings.WHEELHOUSE.glob('*.whl'))} wheels in {settings.WHEELHOUSE}")
