"""Brings an environment to a pinned package set: ``packages.py FINGERPRINT WHEELS TORCH_INDEX``.

Runs on the node with the environment's own Python. Beside it lie ``lock.txt``, the set; ``pip.zip``, since
the environment is made without pip, as Debian's Python cannot do otherwise; and ``additions.zip``, what comes
on top. Where WHEELS is named, a directory, nothing is fetched. The fingerprint is written at the very end: without
it the set is not complete.
"""

import compileall
import errno
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--no-deps"]
PIP += ["--no-compile", "--only-binary", ":all:", "--progress-bar", "off", "--root-user-action", "ignore"]
REACH = "pip's lines above say why. The node must reach a package index that has them."
FULL = "No space left on device"
SPACE = "the disk is full. Free space on it, then prepare the node again: what is complete is kept."
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
    """Why pip failed, or nothing; what it prints goes to the log as it is."""
    program = subprocess.Popen([*PIP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    full = False
    with program.stdout as printed:
        for line in printed:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            full = full or FULL.encode() in line
    return "" if program.wait() == 0 else SPACE if full else REACH


def install(pins, torch_index):
    """Install all pins, PyTorch first: the one whose CPU build not every index has."""
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    why = pip(torch)
    if why == REACH and torch_index:
        say(f"{torch}: the node's own package index does not have it; asking {torch_index}")
        why = pip("--extra-index-url", torch_index, torch)
    if why:
        sys.exit(f"{torch} could not be installed: {why}")
    if why := pip("-r", str(HERE / "lock.txt")):
        sys.exit(f"The packages could not be installed: {why}")


def tidy(pins):
    """Take away what is not in the set: what conda brings with its Python, and no other node of a cluster has."""
    if not Path(sys.prefix, "conda-meta").is_dir():
        return
    normal = re.compile("[-_.]+")
    wanted = {normal.sub("-", pin.partition("==")[0]).lower() for pin in pins} | {"pip"}
    found = (path.name.partition("-")[0] for path in Path(SITE).glob("*-*.dist-info"))
    others = sorted(name for name in found if normal.sub("-", name).lower() not in wanted)
    if others:
        say(f"Not in the set: {', '.join(others)}")
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", "--root-user-action", "ignore", *others])


def main():
    fingerprint, wheels, torch_index = sys.argv[1:]
    if wheels:
        PIP.extend(["--no-index", "--find-links", wheels])
    STAMP.unlink(missing_ok=True)
    unpack("pip.zip")
    lines = (HERE / "lock.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    say(f"Installing {len(pins)} packages into {sys.prefix}")
    install(pins, torch_index)
    tidy(pins)
    unpack("additions.zip")
    # On all processors at once this takes half as long as pip's own, and a start without it twice as long as
    # with it.
    say("Compiling")
    compileall.compile_dir(SITE, rx=SELDOM, quiet=2, workers=0)
    partial = STAMP.with_suffix(".partial")
    partial.write_text(fingerprint)
    partial.replace(STAMP)
    say(f"All {len(pins)} packages are in place.")


try:
    main()
except OSError as error:
    sys.exit(f"The packages could not be installed: {SPACE if error.errno == errno.ENOSPC else error}")
