#!/usr/bin/python3
"""replaying-nvidia-smi: answers as the real one did when its output was captured. On a lab host it is nvidia-smi.

Knows what was captured (``--query-gpu`` with any of the columns, ``--query-compute-apps``, ``topo -m``, ``-q -x``) and
refuses the rest in the real one's words. What it replays lies in the directory named by DATA; the memory in use can be
changed there while it runs.
"""

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

DATA = Path("/usr/local/share/replaying-nvidia-smi")


def fail(sentence: str) -> NoReturn:
    print(sentence)
    sys.exit(2)


def replay(name: str) -> None:
    path = DATA / name
    if not path.exists():
        fail(f"replaying-nvidia-smi: {name} was not captured")
    print(path.read_text(), end="", flush=True)


def table(name: str, fields: list[str], form: list[str]) -> None:
    rows = list(csv.reader((DATA / name).read_text().splitlines(), skipinitialspace=True))
    columns = {head.split(" [")[0]: number for number, head in enumerate(rows[0])}
    for field in fields:
        if field not in columns:
            fail(f'Field "{field}" is not a valid field to query.')
    if "noheader" not in form:
        print(", ".join(rows[0][columns[field]] for field in fields))
    for row in rows[1:]:
        print(", ".join(plain(row[columns[field]], form) for field in fields), flush=True)


def plain(text: str, form: list[str]) -> str:
    if "nounits" in form and text.endswith((" MiB", " %", " W", " MHz")):
        return text.rpartition(" ")[0]
    return text


def main(words: list[str]) -> None:
    options = dict(word.partition("=")[::2] for word in words)
    form = options.get("--format", "").split(",")
    if words[:2] == ["topo", "-m"]:
        replay("topo.txt")
    elif words[:2] == ["-q", "-x"]:
        replay("q-x.xml")
    elif "--query-gpu" in options:
        again(words, lambda: table("query.csv", options["--query-gpu"].split(","), form))
    elif "--query-compute-apps" in options:
        again(words, lambda: table("apps.csv", options["--query-compute-apps"].split(","), form))
    else:
        fail(f"replaying-nvidia-smi: {' '.join(words)} was not captured")


def again(words: list[str], say: Callable[[], None]) -> None:
    """Once, or every so many seconds as ``-l`` says."""
    say()
    while "-l" in words:
        time.sleep(float(words[words.index("-l") + 1]))
        say()


main(sys.argv[1:])
