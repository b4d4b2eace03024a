"""The machine Quarterdeck itself runs on, as a host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from nodes.remote.command import Command
from nodes.remote.errors import NotWritten, TimedOut
from nodes.remote.host import OUTPUT_LIMIT, Result

#: Variables of Quarterdeck's own process that must not colour what runs on the node.
_OURS = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "DJANGO_SETTINGS_MODULE", "SECRET_KEY", "FIELD_KEY",
         "DATABASE_URL", "REDIS_URL", "RAY_ADDRESS")


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in _OURS}
    folders = kept.get("PATH", os.defpath).split(os.pathsep)
    ours = str(Path(sys.prefix) / "bin") if sys.prefix != sys.base_prefix else ""
    kept["PATH"] = os.pathsep.join(folder for folder in folders if folder != ours)
    return kept


class LocalChannel:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._stdin = cast(IO[bytes], process.stdin)
        self._stdout = cast(IO[bytes], process.stdout)

    def read(self, size: int) -> bytes:
        return os.read(self._stdout.fileno(), size)

    def write(self, data: bytes) -> None:
        try:
            self._stdin.write(data)
            self._stdin.flush()
        except BrokenPipeError:
            pass  # the program is gone; read() says so

    def interrupt(self) -> None:
        with suppress(ProcessLookupError):  # it leads a session of its own: the shell and what it started
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.interrupt()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()


class LocalHost:
    """Runs commands as children of this process, without SSH."""

    where = "this machine"

    def run(self, command: Command, stdin: bytes = b"", timeout: float = 30) -> Result:
        try:
            done = subprocess.run(
                ["sh", "-c", command.sh()], input=stdin, capture_output=True, timeout=timeout, env=_environment(),
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise TimedOut(self.where, timeout) from error
        return Result(done.returncode, done.stdout[:OUTPUT_LIMIT], done.stderr[:OUTPUT_LIMIT])

    def open(self, command: Command) -> LocalChannel:
        process = subprocess.Popen(
            ["sh", "-c", command.sh()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            bufsize=0, env=_environment(), start_new_session=True,
        )
        return LocalChannel(process)

    def put(self, path: str, at: int, pieces: Iterable[bytes]) -> None:
        try:
            Path(path).touch()  # and not emptied, as over SSH
            with Path(path).open("r+b") as file:
                file.seek(at)
                for piece in pieces:
                    file.write(piece)
        except OSError as error:
            raise NotWritten(self.where, path, error.strerror or str(error)) from error

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
