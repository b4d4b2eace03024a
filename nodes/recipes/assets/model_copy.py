"""Copies a model from another node of the cluster: ``model_copy.py DIRECTORY SSH...``.

SSH... is the command line that reaches the other node. Beside this file lies ``manifest.json``: every file's path,
size and checksum there. Standard library only; runs on the node that lacks the model. What is here and the same stays;
a file grows as NAME.part and goes on from there after any interruption.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from model_files import PIECE, Progress, Sums, digest_of, ensure_room, say

TRIES = 8


class Copy:
    """The files of one directory, from there to here."""

    def __init__(self, directory, ssh, files):
        self.directory, self.ssh, self.files = directory, ssh, files
        self.sums = Sums(directory)

    def run(self):
        reading = Progress("Comparing", sum(size for _name, size, _digest in self.files))
        left = [file for file in self.files if not self._same(*file, reading)]
        reading.over()
        if not left:
            say(f"All {len(self.files)} files are here already.")
            return
        there = sum(self._stands(name) for name, _size, _digest in left)
        total = sum(size for _name, size, _digest in left)
        ensure_room(self.directory, total - there)
        say(f"{len(left)} of {len(self.files)} files to copy, {total / 2**30:.2f} GiB; "
            f"{there / 2**30:.2f} GiB of it is here already.")
        self.progress = Progress("Copying", total, there)
        for name, size, digest in left:
            self._bring(name, size, digest)
        self.progress.over()

    def _part(self, name):
        return self.directory / (name + ".part")

    def _stands(self, name):
        part = self._part(name)
        return part.stat().st_size if part.exists() else 0

    def _same(self, name, size, digest, reading):
        """Whether the file is here already. One of the same size is read, where it never was."""
        path = self.directory / name
        if not path.is_file() or path.stat().st_size != size:
            return False
        known = self.sums.of(name, path.stat())
        if not known:
            known = digest_of(path, reading.add)
            self.sums.note(name, known)
            self.sums.save()
        return known == digest

    def _bring(self, name, size, digest):
        self._part(name).parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(TRIES):
            stood = self._stands(name)
            said = self._go_on(name)
            if self._stands(name) == size and self._whole(name, digest):
                return
            if attempt < TRIES - 1:
                pause = 1 if self._stands(name) > stood else min(30, 2**attempt)
                why = said or "the connection ended"
                say(f"\n{name}: {why}; going on from {self._stands(name)} bytes in {pause} s")
                time.sleep(pause)
        sys.exit(f"{name} could not be copied: {said or 'it is not what the other node has'}.")

    def _go_on(self, name):
        """Append what is missing; returns what SSH complained of."""
        there = f"tail -c +{self._stands(name) + 1} -- {shlex.quote(sys.argv[1] + '/' + name)}"
        with self._part(name).open("ab") as file:
            process = subprocess.Popen(
                [*self.ssh, there], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
            while piece := process.stdout.read(PIECE):
                file.write(piece)
                self.progress.add(len(piece))
            return process.communicate()[1].decode(errors="replace").strip()[-300:]

    def _whole(self, name, digest):
        part = self._part(name)
        if digest_of(part) != digest:
            self.progress.add(-part.stat().st_size)
            part.unlink()
            return False
        part.replace(self.directory / name)
        self.sums.note(name, digest)
        self.sums.save()
        return True


def main():
    directory = Path(sys.argv[1])
    files = json.loads(Path(__file__).with_name("manifest.json").read_text())["files"]
    try:
        Copy(directory, sys.argv[2:], files).run()
    except OSError as error:
        sys.exit(f"{directory} cannot be written here: {error}. The directory has to be the same on every node.")
    say(f"{directory} is the same here as on the other node.")


main()
