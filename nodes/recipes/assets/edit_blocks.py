"""Keeps blocks in files that belong to others: ``edit_blocks.py ORDERS``; files to put lie beside it.

Runs on the node. A file is written anew beside itself and then takes its own place, so that a full disk or a kill
leaves it as it was; where that cannot be (a file that a container mounted), it is written in place.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent


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
        new.write_text(text)
        if path.exists():
            shutil.copystat(path, new)
            if os.geteuid() == 0:
                os.chown(new, path.stat().st_uid, path.stat().st_gid)
        else:
            new.chmod(mode)
        try:
            new.replace(path)
        except OSError:
            path.write_text(text)
    finally:
        new.unlink(missing_ok=True)


def keep(order):
    path = Path(os.path.realpath(Path(order["path"]).expanduser()))
    old = path.read_text() if path.exists() else ""
    text = edited(old, order["name"], order["body"], order["top"])
    if text == old:
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    replace(path, text, order["mode"])
    print(f"{path}: block {order['name']} {'written' if order['body'] else 'removed'}", flush=True)


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
    for place in orders["gone"]:
        Path(place).expanduser().unlink(missing_ok=True)


main()
