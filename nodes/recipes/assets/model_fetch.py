"""Downloads a model: ``model_fetch.py DIRECTORY``; beside it lies ``manifest.json``, what to fetch from where.

Standard library only; runs on the node. A file grows as NAME.part and goes on from there after any interruption. The
directory gets its name when every file is whole and has the checksum that the hub names.
"""

import concurrent.futures
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from model_files import Progress, Sums, digest_of, ensure_room, say

AT_ONCE = 4  # connections: hubs give each only so much
TRIES = 8
PIECE = 1 << 20
SILENCE = 60  # seconds


class Refused(Exception):
    """What is not worth another try."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """The token is for the hub, not for the storage that it sends on to."""

    def redirect_request(self, request, answer, code, message, headers, url):
        following = super().redirect_request(request, answer, code, message, headers, url)
        if following is not None and urlsplit(url).netloc != urlsplit(request.full_url).netloc:
            following.remove_header("Authorization")
        return following


OPENER = urllib.request.build_opener(_Redirects)


class Download:
    """One file: from where it stands to its end."""

    def __init__(self, directory, entry, progress, lock):
        self.path = directory / entry["path"]
        self.part = self.path.with_name(self.path.name + ".part")
        self.entry, self.progress, self.lock = entry, progress, lock

    def run(self):
        """Returns the file's SHA-256. Raises Refused, or OSError once every try has failed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(TRIES):
            stood = self._size()
            try:
                self._go_on()
                return self._whole()
            except Refused:
                raise
            except OSError as error:
                if attempt == TRIES - 1:
                    raise
                pause = 1 if self._size() > stood else min(30, 2**attempt)
                say(f"\n{self.entry['path']}: {error}; going on from {self._size()} bytes in {pause} s")
                time.sleep(pause)

    def _size(self):
        return self.part.stat().st_size if self.part.exists() else 0

    def _go_on(self):
        at = self._size()
        if at and at == self.entry["size"]:
            return
        request = urllib.request.Request(self.entry["url"], headers={"User-Agent": "quarterdeck"})  # noqa: S310  (the hub's own)
        if at:
            request.add_header("Range", f"bytes={at}-")
        if os.environ.get("QD_HUB_TOKEN"):
            request.add_header("Authorization", f"Bearer {os.environ['QD_HUB_TOKEN']}")
        with _opened(request) as answer, self.part.open("ab" if answer.status == 206 else "wb") as file:
            if answer.status != 206 and at:
                self._count(-at)
            while piece := answer.read(PIECE):
                file.write(piece)
                self._count(len(piece))

    def _count(self, count):
        with self.lock:
            self.progress.add(count)

    def _whole(self):
        """Size and checksum are as the hub says; then it gets its name."""
        size, wanted = self._size(), self.entry["sha256"]
        if size < self.entry["size"]:
            raise OSError(f"the connection ended after {size} of {self.entry['size']} bytes")
        digest = digest_of(self.part)
        if size > self.entry["size"] or (wanted and digest != wanted):
            self.part.unlink()
            self._count(-size)
            raise OSError("what came is not what the hub lists (checksum); fetching it again")
        self.part.replace(self.path)
        return digest


def _opened(request):
    try:
        return OPENER.open(request, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404, 410):
            raise Refused(f"{request.full_url.split('?')[0]}: {error.code} {error.reason}") from error
        raise OSError(f"{error.code} {error.reason}") from error


def missing(directory, entries, sums):
    """What is not there yet; what is there, whole and known, is passed over."""
    for entry in entries:
        path = directory / entry["path"]
        known = sums.of(entry["path"], path.stat()) if path.exists() else ""
        if not known or (entry["sha256"] and known != entry["sha256"]):
            yield entry


def fetch(directory, entries):
    sums, lock = Sums(directory), threading.Lock()
    left = list(missing(directory, entries, sums))
    parts = [directory / (entry["path"] + ".part") for entry in left]
    there = sum(part.stat().st_size for part in parts if part.exists())
    total = sum(entry["size"] for entry in left)
    ensure_room(directory, total - there)
    say(f"{len(left)} of {len(entries)} files to fetch, {total / 2**30:.2f} GiB, {there / 2**30:.2f} GiB of it there.")
    progress = Progress("Downloading", total, there)
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(Download(directory, entry, progress, lock).run): entry["path"] for entry in left}
        try:
            for done in concurrent.futures.as_completed(running):
                with lock:
                    sums.note(running[done], done.result())
                    sums.save()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress.over()
    return sums


def main():
    target = Path(sys.argv[1])
    manifest = json.loads(Path(__file__).with_name("manifest.json").read_text())
    partial = target.with_name(target.name + ".partial")
    try:
        sums = fetch(partial, manifest["files"])
    except (Refused, OSError) as error:
        say(f"The model could not be downloaded: {error}. What has come is kept; start again to go on from there.")
        os._exit(1)  # other connections may hang for a minute yet
    if target.exists():
        sys.exit(f"{target} appeared meanwhile; remove it or this model's deployment, then start again.")
    partial.rename(target)
    sums.kept.rename(Sums(target).kept)
    say(f"{manifest['model']} at {manifest['commit'][:12]} is in {target}.")


if __name__ == "__main__":
    main()
