"""What the programs about model directories share. Standard library only; runs on the node.

A directory's checksums are kept beside it in ``NAME.sums.json``: path → [size, time of change, SHA-256]; where nothing
can be written there, on a share for reading only, in Quarterdeck's own directory. An entry counts while size and time
are the file's, so that a hundred gigabytes are read once and not at every start.
``model_files.py DIRECTORY SUMS`` prints what is known, as one JSON object, without reading any weights; SUMS is where
Quarterdeck keeps such checksums.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

PIECE = 8 << 20


def say(text):
    print(text, flush=True)


def files_of(directory):
    """Every file below the directory: path relative to it → stat. Hidden ones and half ones are left out."""
    found = {}
    for folder, folders, names in os.walk(directory, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and not name.endswith(".part") and path.is_file():
                found[str(path.relative_to(directory))] = path.stat()
    return found


class Sums:
    """The checksums of a directory's files, as far as they are known. ``own``: where Quarterdeck keeps some."""

    def __init__(self, directory, own=None):
        self.directory = Path(directory)
        own = Path(own or Path(os.environ["QD_JOB"]).parents[1] / "sums")
        name = hashlib.sha256(str(self.directory).encode()).hexdigest()[:32]
        self.kept = self.directory.with_name(self.directory.name + ".sums.json")
        self.places = (self.kept, own / f"{name}.json")
        self.known = next((known for place in self.places if (known := self._read(place))), {})

    def _read(self, place):
        try:
            return json.loads(place.read_text())
        except (OSError, ValueError):
            return {}

    def of(self, name, stat):
        """The SHA-256 of a file as it is now, or "" where it was not computed yet."""
        size, changed, digest = self.known.get(name, (-1, -1, ""))
        return digest if (size, changed) == (stat.st_size, stat.st_mtime_ns) else ""

    def note(self, name, digest):
        stat = (self.directory / name).stat()
        self.known[name] = [stat.st_size, stat.st_mtime_ns, digest]

    def save(self):
        beside, own = self.places
        try:
            self._write(beside)
        except OSError:  # somebody else's directory, or one for reading only
            own.parent.mkdir(exist_ok=True)
            self._write(own)

    def _write(self, place):
        draft = place.with_name(place.name + ".part")
        draft.write_text(json.dumps(self.known))
        draft.replace(place)


def digest_of(path, told=lambda count: None):
    """SHA-256 of a file, in hex; ``told`` hears of every piece."""
    hasher = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(PIECE):
            hasher.update(piece)
            told(len(piece))
    return hasher.hexdigest()


class Progress:
    """One line that is written over every two seconds: bytes done, of how many, how fast."""

    def __init__(self, verb, total, done=0):
        self.verb, self.total, self.done, self.first = verb, total, done, done
        self.began = self.told = time.monotonic()

    def add(self, count):
        self.done += count
        now = time.monotonic()
        if now - self.told >= 2:
            self.told = now
            self._line(now)

    def _line(self, now):
        speed = (self.done - self.first) / max(now - self.began, 0.001)
        left = f", {(self.total - self.done) / speed:.0f} s left" if speed > 0 and self.done <= self.total else ""
        percent = 100 * self.done / self.total if self.total else 100
        print(f"\r{self.verb} {self.done / 2**30:.2f} of {self.total / 2**30:.2f} GiB, {percent:.0f} %, "
              f"{speed / 2**20:.0f} MiB/s{left}   ", end="", flush=True)

    def over(self):
        self._line(time.monotonic())
        print(flush=True)


def ensure_room(directory, needed):
    """Exits with a sentence where the disk cannot hold ``needed`` more bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < needed + (64 << 20):
        sys.exit(f"{directory} has {free / 2**30:.1f} GiB free and the model needs {needed / 2**30:.1f} GiB more.")


def listing(directory, own):
    """Path, size and checksum (or "") of every file, for another node to compare with."""
    sums = Sums(directory, own)
    return [[name, stat.st_size, sums.of(name, stat)] for name, stat in sorted(files_of(directory).items())]


if __name__ == "__main__":
    print(json.dumps({"files": listing(Path(sys.argv[1]), Path(sys.argv[2]))}))
