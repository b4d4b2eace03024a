"""Keeps blocks in files that belong to others: ``edit_blocks.py ORDERS``; files to put lie beside it.

Runs on the node. A file is written anew beside itself and then takes its own place, so that a full disk or a kill
leaves it as it was; where that cannot be (a file that a container mounted), it is written in place.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # what others wrote may be in any encoding


def edited(text, name, body, top):
    """The text with the block in it, or without it where there is no body."""
    begin, end = f"# >>> quarterdeck {name} >>>\n", f"# <<< quarterdeck {name} <<<\n"
    text += "" if not text or text.endswith("\n") else "\n"
    rest = re.sub(re.escape(begin) + "(?s:.*?)" + re.escape(end), "", text)
    block = begin + body + end if body else ""
    return block + rest if top else rest + block


def replace(path, text, mode):
    new = path.with_name(path.name + ".quarterdeck")
    try:
        new.write_text(text, **TEXT)
        if path.exists():
            shutil.copystat(path, new)
            if os.geteuid() == 0:
                os.chown(new, path.stat().st_uid, path.stat().st_gid)
        else:
            new.chmod(mode)
        try:
            new.replace(path)
        except OSError:
            path.write_text(text, **TEXT)
    finally:
        new.unlink(missing_ok=True)


def dropped(text, pattern):
    """The text without the lines in its blocks that the pattern is about; a block that is empty then goes too."""
    def rest(block):
        body = re.sub(pattern, "", block[3], flags=re.MULTILINE)
        return block[1] + body + block[4] if body else ""

    return re.sub(r"(# >>> quarterdeck (\S+) >>>\n)((?s:.*?))(# <<< quarterdeck \2 <<<\n)", rest, text)


@contextlib.contextmanager
def alone(place):
    """The file's real path, while no other of these programs edits it: each writes what it read, less or more."""
    path = Path(os.path.realpath(Path(place).expanduser()))
    path.parent.mkdir(mode=0o700, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(folder)


def keep(order):
    with alone(order["path"]) as path:
        old = path.read_text(**TEXT) if path.exists() else ""
        text = edited(old, order["name"], order["body"], order["top"])
        if text != old:
            replace(path, text, order["mode"])
            print(f"{path}: block {order['name']} {'written' if order['body'] else 'removed'}", flush=True)


def drop(place, pattern):
    with alone(place) as path:
        old = path.read_text(**TEXT) if path.exists() else ""
        text = dropped(old, pattern)
        if text != old:
            replace(path, text, 0o600)
            print(f"{path}: lines taken out of blocks", flush=True)


def main():
    os.umask(0o077)
    orders = json.loads(Path(sys.argv[1]).read_text())
    for name, place in orders["put"].items():
        path = Path(place).expanduser()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        replace(path, (HERE / name).read_text(), 0o600)
        (HERE / name).unlink()
        print(f"{path}: written", flush=True)
    for order in orders["blocks"]:
        keep(order)
    for place, pattern in orders.get("drop", {}).items():
        drop(place, pattern)
    for place in orders["gone"]:
        Path(place).expanduser().unlink(missing_ok=True)


main()
