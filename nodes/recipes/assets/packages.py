"""Brings an environment to a pinned package set: ``packages.py FINGERPRINT TORCH_INDEX``.

Runs on the node with the environment's own Python. Beside it lie ``lock.txt``, the set; ``pip.zip``, since
the environment is made without pip, as Debian's Python cannot do otherwise; and ``additions.zip``, what comes
on top. The fingerprint is written at the very end: without it the set is not complete.
"""

import compileall
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--no-deps"]
PIP += ["--no-compile", "--only-binary", ":all:", "--progress-bar", "off", "--root-user-action", "ignore"]
REACH = "pip's lines above say why. The node must reach a package index that has them."
HERE = Path(__file__).parent
SELDOM = re.compile("/(tests?|transformers/models)/")  # a quarter of it all, compiled when it is first imported
SITE = sysconfig.get_path("purelib")
STAMP = Path(sys.prefix, "quarterdeck.lock")


def say(text):
    print(text, flush=True)


def unpack(name):
    with zipfile.ZipFile(HERE / name) as archive:
        archive.extractall(SITE)


def pip(*arguments):
    """pip's exit status; what it prints goes to the log as it is."""
    return subprocess.run([*PIP, *arguments]).returncode


def install(pins, torch_index):
    """Install all pins, PyTorch first: the one whose CPU build not every index has."""
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    status = pip(torch)
    if status and torch_index:
        say(f"{torch}: the node's own package index does not have it; asking {torch_index}")
        status = pip("--extra-index-url", torch_index, torch)
    if status:
        sys.exit(f"{torch} could not be installed: {REACH}")
    if pip("-r", str(HERE / "lock.txt")):
        sys.exit(f"The packages could not be installed: {REACH}")


def main():
    fingerprint, torch_index = sys.argv[1:]
    STAMP.unlink(missing_ok=True)
    unpack("pip.zip")
    lines = (HERE / "lock.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    say(f"Installing {len(pins)} packages into {sys.prefix}")
    install(pins, torch_index)
    unpack("additions.zip")
    # On all processors at once this takes half as long as pip's own, and a start without it twice as long as
    # with it.
    say("Compiling")
    compileall.compile_dir(SITE, rx=SELDOM, quiet=2, workers=0)
    partial = STAMP.with_suffix(".partial")
    partial.write_text(fingerprint)
    partial.replace(STAMP)
    say(f"All {len(pins)} packages are in place.")


main()
