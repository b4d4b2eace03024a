"""Reads a model's files once and keeps their checksums: ``model_sums.py DIRECTORY``. Runs on the node."""

import sys
from pathlib import Path

from model_files import Progress, Sums, digest_of, files_of, say


def main():
    directory = Path(sys.argv[1])
    sums, found = Sums(directory), files_of(directory)
    left = [name for name, stat in sorted(found.items()) if not sums.of(name, stat)]
    total = sum(found[name].st_size for name in left)
    say(f"{len(found)} files in {directory}; {len(left)} to read for their checksums, {total / 2**30:.2f} GiB.")
    progress = Progress("Reading", total)
    for name in left:
        sums.note(name, digest_of(directory / name, told=progress.add))
        sums.save()
    progress.over()


main()
