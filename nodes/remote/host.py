"""What Quarterdeck asks of a host: run something short, or hold one channel open. One Protocol, three implementations:
SSH, the local machine, and the fake of the tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from nodes.remote.command import Command
from nodes.remote.errors import CommandFailed

#: What `Host.run` keeps of each output stream; the rest is read and dropped, so that a chatty command cannot hang us.
OUTPUT_LIMIT = 4 * 1024 * 1024


class Result(NamedTuple):
    """How a command ended. Output is cut at `OUTPUT_LIMIT` bytes a stream."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")

    def last_words(self) -> str:
        """The last line that says something: stderr's, else stdout's, at most 300 characters."""
        lines = (self.stderr or self.stdout).decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


class Channel(Protocol):
    """A running program's standard input and output."""

    def read(self, size: int) -> bytes:
        """At least one byte, at most ``size``; b"" once the program is gone. Raises `HostProblem` on a dead line."""

    def write(self, data: bytes) -> None: ...

    def interrupt(self) -> None:
        """End the program, from any thread: whoever reads sees its end."""

    def close(self) -> None:
        """End the program and let everything go. Only for the thread that reads."""


class Host(Protocol):
    """One machine. Methods raise `HostProblem` when it cannot be used; a non-zero status is not an error."""

    where: str  # for sentences: "te1 (10.0.0.11:22)"

    def run(self, command: Command, stdin: bytes = b"", timeout: float = 30) -> Result: ...

    def open(self, command: Command) -> Channel: ...

    def put(self, path: str, at: int, pieces: Iterable[bytes]) -> None:
        """Write into a file from byte ``at`` on; what it has beyond stays. All of it is there on return.

        Raises `NotWritten` where the host refuses, `Unreachable` when it stops answering: say it again then.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def ask(host: Host, command: Command, stdin: bytes = b"", timeout: float = 30) -> Result:
    """Run a short command that must succeed. Raises `CommandFailed` with its last words when it does not."""
    result = host.run(command, stdin, timeout)
    if result.status != 0:
        raise CommandFailed(host.where, result.status, result.last_words())
    return result
