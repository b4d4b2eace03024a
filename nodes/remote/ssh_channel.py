"""What runs over an SSH connection: a program that is talked with, a command that is heard to its end, a carried port.

A login shell may print what it likes before it runs anything, on both outputs and without end: it is told apart by a
mark on the first, read and dropped on the second, and neither can hang us.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress

import paramiko
from django.utils.translation import gettext as _

from nodes.remote.errors import TimedOut, Unreachable
from nodes.remote.host import OUTPUT_LIMIT, Result

#: An open channel that brings nothing for this long is dead: what runs on it says something every second.
SILENCE_SECONDS = 20
#: How long a reader waits before it looks at the other output, which fills the same window if nobody reads it.
_GLANCE_SECONDS = 0.25
#: Said before each command's own output: what a login shell prints from its start-up files comes before it.
_MARK = b"\n--quarterdeck " + secrets.token_hex(8).encode() + b"--\n"
SAY_MARK = b"printf '\\n%s\\n' '" + _MARK.strip() + b"'; "


class SshChannel:
    """A running program. Its standard error is read and dropped."""

    def __init__(self, channel: paramiko.Channel, where: str) -> None:
        channel.settimeout(_GLANCE_SECONDS)
        self._channel = channel
        self._where = where
        self._greeting: bytearray | None = bytearray()  # None once it is over

    def read(self, size: int) -> bytes:
        data = self._receive(size)
        while self._greeting is not None and data:
            data = self._after_greeting(self._greeting, data) or self._receive(size)
        return data

    def _after_greeting(self, greeting: bytearray, data: bytes) -> bytes:
        """What of ``data`` comes after the mark; nothing while that has not come."""
        before = len(greeting)
        greeting += data
        at = greeting.find(_MARK, max(0, before - len(_MARK)))
        if at >= 0:
            self._greeting = None
            return bytes(greeting[at + len(_MARK) :])
        if len(greeting) > OUTPUT_LIMIT:
            raise _endless(self._where)
        return b""

    def _receive(self, size: int) -> bytes:
        deadline = time.monotonic() + SILENCE_SECONDS
        while True:
            try:
                return self._channel.recv(size)
            except TimeoutError as error:
                if self._drain_errors():
                    deadline = time.monotonic() + SILENCE_SECONDS
                elif time.monotonic() > deadline:
                    raise TimedOut(self._where, SILENCE_SECONDS) from error

    def _drain_errors(self) -> bool:
        ready = self._channel.recv_stderr_ready()
        while self._channel.recv_stderr_ready():
            self._channel.recv_stderr(1 << 20)
        return ready

    def write(self, data: bytes) -> None:
        rest, deadline = memoryview(data), time.monotonic() + SILENCE_SECONDS
        while rest:
            try:
                rest = rest[self._channel.send(bytes(rest[:32768])) :]
                deadline = time.monotonic() + SILENCE_SECONDS
            except TimeoutError as error:
                if time.monotonic() > deadline:
                    raise TimedOut(self._where, SILENCE_SECONDS) from error
            except OSError as error:
                raise Unreachable(self._where, _("the connection was closed")) from error

    def interrupt(self) -> None:
        self.close()

    def close(self) -> None:
        with suppress(EOFError, OSError, paramiko.SSHException):  # a dead connection needs no goodbye
            self._channel.close()


def _endless(where: str) -> Unreachable:
    return Unreachable(where, _("its shell prints without end before it runs anything"))


class SshStream:
    """One carried TCP connection. ``b""`` from `receive` is its end; OSError when the line is dead."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def receive(self, size: int) -> bytes:
        return self._channel.recv(size)

    def send(self, data: bytes) -> None:
        self._channel.sendall(data)

    def finish(self) -> None:
        """Say that nothing more is sent; what comes back is still read."""
        with suppress(EOFError, OSError, paramiko.SSHException):
            self._channel.shutdown_write()

    def close(self) -> None:
        with suppress(EOFError, OSError, paramiko.SSHException):
            self._channel.close()


def converse(channel: paramiko.Channel, where: str, stdin: bytes, timeout: float) -> Result:
    """Feed stdin and drain both outputs together: a full pipe on any of the three would hang the other two."""
    deadline = time.monotonic() + timeout
    channel.settimeout(0.0)
    out, err, rest = bytearray(), bytearray(), memoryview(stdin)
    if not rest:
        channel.shutdown_write()
    while True:
        rest = _feed(channel, rest)
        # Looked at before the outputs: what comes between the two looks is read in the next round.
        over = channel.exit_status_ready() and (channel.eof_received or channel.closed)
        moved = _drain(channel, out, err)
        if over and not moved:
            return Result(_status(channel, where), _without_greeting(out, where), bytes(err))
        if time.monotonic() > deadline:
            raise TimedOut(where, timeout)
        if not moved:
            _wait(channel, where)


def _status(channel: paramiko.Channel, where: str) -> int:
    """How the program ended; -1: by a signal. A line that broke leaves no status either, and says nothing of it."""
    status = channel.recv_exit_status()
    if status < 0 and not (channel.eof_received and channel.get_transport().is_active()):
        raise Unreachable(where, _("the connection was closed"))
    return status


def _wait(channel: paramiko.Channel, where: str) -> None:
    if not channel.get_transport().is_active():
        raise Unreachable(where, _("the connection was closed"))
    channel.status_event.wait(0.002)


def _without_greeting(out: bytearray, where: str) -> bytes:
    greeting, mark, said = bytes(out).partition(_MARK)
    if not mark and len(out) >= OUTPUT_LIMIT:
        raise _endless(where)
    return said if mark else greeting


def _feed(channel: paramiko.Channel, rest: memoryview) -> memoryview:
    if rest and channel.send_ready():
        try:
            rest = rest[channel.send(bytes(rest[:32768])) :]
        except OSError:
            return memoryview(b"")  # the program ended without reading all of it; its status says why
        if not rest:
            channel.shutdown_write()
    return rest


def _drain(channel: paramiko.Channel, out: bytearray, err: bytearray) -> bool:
    moved = False
    if channel.recv_ready():
        _keep(out, channel.recv(1 << 16))
        moved = True
    if channel.recv_stderr_ready():
        _keep(err, channel.recv_stderr(1 << 16))
        moved = True
    return moved


def _keep(buffer: bytearray, data: bytes) -> None:
    buffer.extend(data[: max(0, OUTPUT_LIMIT - len(buffer))])
