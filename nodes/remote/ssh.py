"""A host over SSH. The only module that imports paramiko.

Host keys are pinned: a connection is made only to a server that shows exactly the approved key. One connection a host,
many channels on it; Nagle's delay is off, because each command on an open connection would cost 40 ms more.
"""

from __future__ import annotations

import base64
import hashlib
import io
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import paramiko
from django.utils.translation import gettext as _

from controlplane.secrets import NO_SECRET, Secret
from nodes.remote.command import Command
from nodes.remote.errors import BadKey, HostKeyChanged, SignInRefused, TimedOut, Unreachable
from nodes.remote.host import OUTPUT_LIMIT, Result

CONNECT_SECONDS = 5
#: An open channel that brings nothing for this long is dead: what runs on it says something every second.
SILENCE_SECONDS = 20
#: Said before each command's own output: what a login shell prints from its start-up files comes before it.
_MARK = b"\n--quarterdeck " + secrets.token_hex(8).encode() + b"--\n"
_SAY_MARK = b"printf '\\n%s\\n' '" + _MARK.strip() + b"'; "
_KEY_TYPES: tuple[type[paramiko.PKey], ...] = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)


class HostKey(NamedTuple):
    """A server's public key: ``line`` as in known_hosts ("ssh-ed25519 AAAA…")."""

    line: str

    @property
    def type(self) -> str:
        return self.line.split()[0].removeprefix("ssh-").upper()

    @property
    def fingerprint(self) -> str:
        """SHA256:…, as ``ssh-keygen -l`` shows it."""
        digest = hashlib.sha256(base64.b64decode(self.line.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True)
class SshLogin:
    """Where to connect and as whom: with a password or a private key, never both."""

    name: str
    address: str
    port: int
    user: str
    password: Secret = NO_SECRET
    private_key: Secret = NO_SECRET
    passphrase: Secret = NO_SECRET

    @property
    def where(self) -> str:
        return f"{self.name} ({self.address}:{self.port})" if self.name != self.address else self.address


def new_key() -> tuple[Secret, str]:
    """A new Ed25519 pair: the private half in OpenSSH's format, the public half as an authorized_keys line."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return Secret(private.decode()), public.decode()


def read_key(text: Secret, passphrase: Secret) -> paramiko.PKey:
    """A private key of any of the three types. Raises `BadKey` saying which of key and passphrase is wrong."""
    for key_type in _KEY_TYPES:
        try:
            return key_type.from_private_key(io.StringIO(text.reveal()), password=passphrase.reveal() or None)
        except paramiko.PasswordRequiredException as error:
            raise BadKey(_("The private key is protected by a passphrase."), _("Enter its passphrase.")) from error
        except (paramiko.SSHException, ValueError, IndexError) as error:
            if _is_wrong_passphrase(error, passphrase):
                raise BadKey(_("The passphrase does not open the private key."), _("Enter it again.")) from error
    raise BadKey(
        _("This is not a private key that can be used."),
        _("Paste the whole file, from BEGIN to END: an Ed25519, ECDSA or RSA key in OpenSSH or PEM format."),
    )


def _is_wrong_passphrase(error: Exception, passphrase: Secret) -> bool:
    said = f"{error} {error.__cause__ or ''}".lower()
    return bool(passphrase.reveal()) and any(word in said for word in ("passphrase", "decrypt", "checkint", "password"))


def offered_key(address: str, port: int, name: str = "") -> HostKey:
    """The key the server shows now, before anything is sent to it. Raises `Unreachable`."""
    login = SshLogin(name or address, address, port, "")
    transport = _transport(login)
    try:
        return _key_of(transport)
    finally:
        transport.close()


def _key_of(transport: paramiko.Transport) -> HostKey:
    key = transport.get_remote_server_key()
    return HostKey(f"{key.get_name()} {key.get_base64()}")


def _transport(login: SshLogin) -> paramiko.Transport:
    try:
        sock = socket.create_connection((login.address, login.port), timeout=CONNECT_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _negotiated(paramiko.Transport(sock))
    except (OSError, UnicodeError, EOFError, paramiko.SSHException) as error:
        raise Unreachable(login.where, _why(error)) from error


def _negotiated(transport: paramiko.Transport) -> paramiko.Transport:
    transport.banner_timeout = CONNECT_SECONDS
    transport.set_keepalive(15)
    try:
        transport.start_client(timeout=CONNECT_SECONDS * 2)
    except BaseException:
        transport.close()
        raise
    return transport


def _why(error: Exception) -> str:
    match error:
        case socket.gaierror():
            return _("the name is not known")
        case TimeoutError():
            return _("no answer within %(seconds)d s") % {"seconds": CONNECT_SECONDS}
        case ConnectionRefusedError():
            return _("nothing listens on this port")
        case OSError():
            return error.strerror or str(error)
        case _:
            return _("what answers there is not an SSH server (%(error)s)") % {"error": str(error)[:120]}


class SshChannel:
    def __init__(self, channel: paramiko.Channel, where: str) -> None:
        channel.settimeout(SILENCE_SECONDS)
        self._channel = channel
        self._where = where
        self._greeting: bytearray | None = bytearray()  # None once it is over

    def read(self, size: int) -> bytes:
        data = self._receive(size)
        while self._greeting is not None and data:
            self._greeting += data
            greeting, mark, data = bytes(self._greeting).partition(_MARK)
            if mark:
                self._greeting = None
            elif len(greeting) > OUTPUT_LIMIT:
                raise Unreachable(self._where, _("its shell prints without end before it runs anything"))
            data = data or self._receive(size)
        return data

    def _receive(self, size: int) -> bytes:
        try:
            return self._channel.recv(size)
        except TimeoutError as error:
            raise TimedOut(self._where, SILENCE_SECONDS) from error

    def write(self, data: bytes) -> None:
        try:
            self._channel.sendall(data)
        except OSError as error:
            raise Unreachable(self._where, _("the connection was closed")) from error

    def interrupt(self) -> None:
        self.close()

    def close(self) -> None:
        with suppress(EOFError, OSError, paramiko.SSHException):  # a dead connection needs no goodbye
            self._channel.close()


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


class SshHost:
    """One pinned, signed-in connection. Made by `connect`."""

    def __init__(self, login: SshLogin, transport: paramiko.Transport) -> None:
        self.where = login.where
        self._transport = transport

    @property
    def alive(self) -> bool:
        return self._transport.is_active()

    def run(self, command: Command, stdin: bytes = b"", timeout: float = 30) -> Result:
        channel = self._session(command)
        try:
            return self._converse(channel, stdin, time.monotonic() + timeout, timeout)
        finally:
            channel.close()

    def open(self, command: Command) -> SshChannel:
        return SshChannel(self._session(command), self.where)

    def connect_from_there(self, address: str, port: int) -> SshStream:
        """A TCP connection that the host itself makes to ``address``, carried here. Raises `Unreachable`."""
        try:
            channel = self._transport.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=10)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise Unreachable(self.where, _("it does not reach port %(port)d itself") % {"port": port}) from error
        return SshStream(channel)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _session(self, command: Command) -> paramiko.Channel:
        try:
            channel = self._transport.open_session(timeout=CONNECT_SECONDS * 2)
            channel.exec_command(_SAY_MARK + command.sh().encode())
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise Unreachable(self.where, _("the connection was closed")) from error
        return channel

    def _converse(self, channel: paramiko.Channel, stdin: bytes, deadline: float, timeout: float) -> Result:
        """Feed stdin and drain both outputs together: a full pipe on any of the three would hang the other two."""
        channel.settimeout(0.0)
        out, err, rest = bytearray(), bytearray(), memoryview(stdin)
        if not rest:
            channel.shutdown_write()
        while True:
            rest = _feed(channel, rest)
            moved = _drain(channel, out, err)
            if not moved and channel.exit_status_ready() and (channel.eof_received or channel.closed):
                return Result(channel.recv_exit_status(), _without_greeting(out), bytes(err))
            if time.monotonic() > deadline:
                raise TimedOut(self.where, timeout)
            if not moved:
                self._wait(channel)

    def _wait(self, channel: paramiko.Channel) -> None:
        if not self._transport.is_active():
            raise Unreachable(self.where, _("the connection was closed"))
        channel.status_event.wait(0.002)


def _without_greeting(out: bytearray) -> bytes:
    greeting, mark, said = bytes(out).partition(_MARK)
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


def connect(login: SshLogin, pinned: HostKey) -> SshHost:
    """Connect and sign in, only to the server that holds the pinned key.

    Raises `Unreachable`, `HostKeyChanged` (nothing was sent), `BadKey` or `SignInRefused`.
    """
    key = read_key(login.private_key, login.passphrase) if login.private_key.reveal() else None
    transport = _transport(login)
    try:
        shown = _key_of(transport)
        if shown != pinned:
            raise HostKeyChanged(login.where, shown.line)
        _sign_in(transport, login, key)
    except BaseException:
        transport.close()
        raise
    return SshHost(login, transport)


def _sign_in(transport: paramiko.Transport, login: SshLogin, key: paramiko.PKey | None) -> None:
    try:
        if key is not None:
            transport.auth_publickey(login.user, key)
        else:
            transport.auth_password(login.user, login.password.reveal())
    except paramiko.AuthenticationException as error:
        offered = _("the private key") if key is not None else _("the password")
        raise SignInRefused(login.where, login.user, offered) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise Unreachable(login.where, _("the connection was closed during the sign-in")) from error
