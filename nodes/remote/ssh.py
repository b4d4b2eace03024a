"""A host over SSH. Only this module and `ssh_channel` import paramiko.

Host keys are pinned: a connection is made only to a server that shows exactly the approved key. One connection a host,
many channels on it; Nagle's delay is off, because each command on an open connection would cost 40 ms more. Everything
that waits for the other side has a limit: a host that hangs anywhere holds nobody for longer.
"""

from __future__ import annotations

import base64
import hashlib
import io
import socket
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import paramiko
from django.utils.translation import gettext as _

from controlplane.secrets import NO_SECRET, Secret
from nodes.remote.command import Command
from nodes.remote.errors import BadKey, HostKeyChanged, NotWritten, SignInRefused, TimedOut, Unreachable
from nodes.remote.host import Result
from nodes.remote.ssh_channel import SAY_MARK, SshChannel, SshStream, converse

CONNECT_SECONDS = 5
#: For the key exchange, the sign-in, and for opening a channel and having it run something: each.
ANSWER_SECONDS = 10
#: Keys of an SSH agent that are offered: a server hangs up after six failures (MaxAuthTries).
_AGENT_KEYS = 4
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
    """Where to connect and as whom: with a password or a private key, never both.

    ``agent``: the private key is tried first, then those of the SSH agent that this process can ask.
    """

    name: str
    address: str
    port: int
    user: str
    password: Secret = NO_SECRET
    private_key: Secret = NO_SECRET
    passphrase: Secret = NO_SECRET
    agent: bool = False

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


def opened(text: Secret, passphrase: Secret) -> Secret:
    """The key without its passphrase, for who signs in to many hosts: opening it costs a tenth of a second each time.

    Raises `BadKey`.
    """
    from cryptography.hazmat.primitives import serialization

    read_key(text, passphrase)
    load = serialization.load_ssh_private_key if "OPENSSH" in text.reveal() else serialization.load_pem_private_key
    key = load(text.reveal().encode(), passphrase.reveal().encode() or None)
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    return Secret(plain.decode())


def _is_wrong_passphrase(error: Exception, passphrase: Secret) -> bool:
    said = f"{error} {error.__cause__ or ''}".lower()
    return bool(passphrase.reveal()) and any(word in said for word in ("passphrase", "decrypt", "checkint", "password"))


def offered_key(address: str, port: int, name: str = "", through: SshHost | None = None) -> HostKey:
    """The key the server shows now, before anything is sent to it. Raises `Unreachable`."""
    login = SshLogin(name or address, address, port, "")
    transport = _transport(login, through)
    try:
        return _key_of(transport)
    finally:
        transport.close()


def _key_of(transport: paramiko.Transport) -> HostKey:
    key = transport.get_remote_server_key()
    return HostKey(f"{key.get_name()} {key.get_base64()}")


def _transport(login: SshLogin, through: SshHost | None) -> paramiko.Transport:
    try:
        if through is not None:
            return _negotiated(paramiko.Transport(through.carry(login.address, login.port)))
        sock = socket.create_connection((login.address, login.port), timeout=CONNECT_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _negotiated(paramiko.Transport(sock))
    except (OSError, UnicodeError, EOFError, paramiko.SSHException) as error:
        raise Unreachable(login.where, _why(error)) from error


def _negotiated(transport: paramiko.Transport) -> paramiko.Transport:
    transport.banner_timeout, transport.auth_timeout = CONNECT_SECONDS, ANSWER_SECONDS
    transport.set_keepalive(15)
    over = threading.Event()
    try:
        transport.start_client(event=over)  # without an event it would return as if all were well when its time is over
        if not over.wait(CONNECT_SECONDS + ANSWER_SECONDS):
            raise TimeoutError
        if not transport.is_active():
            raise transport.get_exception() or EOFError()
    except BaseException:
        transport.close()
        raise
    return transport


def _why(error: Exception) -> str:
    if "Error reading SSH protocol banner" in str(error):  # paramiko keeps what really happened as the context
        error = error.__context__ if isinstance(error.__context__, Exception) else error
        if isinstance(error, TimeoutError):
            return _("it takes the connection and then says nothing for %(seconds)d s") % {"seconds": CONNECT_SECONDS}
    match error:
        case socket.gaierror():
            return _("the name is not known")
        case TimeoutError():
            return _("no answer within %(seconds)d s") % {"seconds": CONNECT_SECONDS}
        case ConnectionRefusedError():
            return _("nothing listens on this port")
        case EOFError() | ConnectionResetError():
            return _("it takes the connection and closes it at once; it may be full, or bar this machine")
        case OSError():
            return error.strerror or str(error)
        case _:
            return _("what answers there is not an SSH server (%(error)s)") % {"error": str(error)[:120]}


class SshHost:
    """One pinned, signed-in connection. Made by `connect`."""

    def __init__(self, login: SshLogin, transport: paramiko.Transport) -> None:
        self.where = login.where
        self.used_at = time.monotonic()
        self._transport = transport
        self._channels: weakref.WeakSet[paramiko.Channel] = weakref.WeakSet()

    @property
    def alive(self) -> bool:
        return self._transport.is_active()

    @property
    def idle_seconds(self) -> float:
        """Since somebody last asked for it or had a channel open on it."""
        if any(not channel.closed for channel in list(self._channels)):
            self.used_at = time.monotonic()
            return 0
        return time.monotonic() - self.used_at

    def run(self, command: Command, stdin: bytes = b"", timeout: float = 30) -> Result:
        channel = self._session(command)
        try:
            return converse(channel, self.where, stdin, timeout)
        finally:
            channel.close()

    def open(self, command: Command) -> SshChannel:
        return SshChannel(self._session(command), self.where)

    def put(self, path: str, at: int, pieces: Iterable[bytes]) -> None:
        """Over SFTP. What was sent before the line broke is there, up to some byte."""
        try:
            channel = self._transport.open_session(timeout=ANSWER_SECONDS)
            channel.settimeout(ANSWER_SECONDS)
            channel.invoke_subsystem("sftp")
            with paramiko.SFTPClient(channel) as client:
                client.open(path, "ab").close()  # never emptied: what an earlier connection sent may still come
                with client.open(path, "r+b") as file:
                    end = _write(file, at, pieces)
                    if (file.stat().st_size or 0) < end:
                        raise NotWritten(self.where, path, _("not all of it was taken"))
        except (paramiko.SSHException, EOFError, OSError) as error:
            self._transport.join(1)  # a line that breaks closes its channels first
            if not self._transport.is_active() or isinstance(error, TimeoutError):
                raise Unreachable(self.where, _("the connection was closed")) from error
            raise NotWritten(self.where, path, str(error) or type(error).__name__) from error

    def connect_from_there(self, address: str, port: int) -> SshStream:
        """A TCP connection that the host itself makes to ``address``, carried here. Raises `Unreachable`."""
        return SshStream(self.carry(address, port))

    def carry(self, address: str, port: int) -> paramiko.Channel:
        """As `connect_from_there`, as what a connection to a host behind this one runs over."""
        try:
            channel = self._transport.open_channel(
                "direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=ANSWER_SECONDS)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise Unreachable(self.where, _("it does not reach %(address)s port %(port)d itself")
                              % {"address": address, "port": port}) from error
        self._channels.add(channel)
        return channel

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _session(self, command: Command) -> paramiko.Channel:
        line = SAY_MARK + command.sh().encode()
        began = time.monotonic()
        try:
            channel = self._transport.open_session(timeout=ANSWER_SECONDS)
            with _closed_after(ANSWER_SECONDS, channel):
                channel.exec_command(line)
        except (paramiko.SSHException, EOFError, OSError) as error:
            if time.monotonic() - began >= ANSWER_SECONDS:
                raise TimedOut(self.where, ANSWER_SECONDS) from error
            raise Unreachable(self.where, _("the connection was closed")) from error
        self._channels.add(channel)
        return channel


def _write(file: paramiko.SFTPFile, at: int, pieces: Iterable[bytes]) -> int:
    """The byte after the last one. Not all of it may be there yet: only an answer to a later question proves that."""
    file.set_pipelined(True)
    file.seek(at)
    for piece in pieces:
        file.write(piece)
    return file.tell()


@contextmanager
def _closed_after(seconds: float, channel: paramiko.Channel) -> Iterator[None]:
    """paramiko waits without end for the answer to a request; a channel that is closed ends that."""
    timer = threading.Timer(seconds, channel.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def connect(login: SshLogin, pinned: HostKey, through: SshHost | None = None) -> SshHost:
    """Connect and sign in, only to the server that holds the pinned key; ``through`` is the jump host, if any.

    Raises `Unreachable`, `HostKeyChanged` (nothing was sent), `BadKey`, `SignInRefused` or `TimedOut`.
    """
    keys = [read_key(login.private_key, login.passphrase)] if login.private_key.reveal() else []
    transport = _transport(login, through)
    try:
        shown = _key_of(transport)
        if shown != pinned:
            raise HostKeyChanged(login.where, shown.line)
        _sign_in(transport, login, keys)
    except BaseException:
        transport.close()
        raise
    return SshHost(login, transport)


def _sign_in(transport: paramiko.Transport, login: SshLogin, keys: Sequence[paramiko.PKey]) -> None:
    try:
        if login.agent:
            with closing(paramiko.Agent()) as agent:
                _offer(transport, login.user, [*keys, *agent.get_keys()[:_AGENT_KEYS]])
        elif keys:
            _offer(transport, login.user, keys)
        else:
            transport.auth_password(login.user, login.password.reveal())
        if not transport.is_authenticated():  # it wants a second factor besides
            raise paramiko.AuthenticationException
    except paramiko.AuthenticationException as error:
        if str(error) == "Authentication timeout.":
            raise TimedOut(login.where, ANSWER_SECONDS) from error
        raise SignInRefused(login.where, login.user, _offered(login), _allowed(error)) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise Unreachable(login.where, _("the connection was closed during the sign-in")) from error


def _offer(transport: paramiko.Transport, user: str, keys: Sequence[paramiko.PKey]) -> None:
    """Sign in with the first of the keys that is accepted. Raises AuthenticationException."""
    for key in keys[:-1]:
        try:
            transport.auth_publickey(user, key)
            return
        except paramiko.BadAuthenticationType:
            raise
        except paramiko.AuthenticationException:
            continue
    transport.auth_publickey(user, keys[-1])


def _offered(login: SshLogin) -> str:
    if login.agent:
        return _("Quarterdeck's own key and those of the SSH agent")
    return _("the private key") if login.private_key.reveal() else _("the password")


def _allowed(error: paramiko.AuthenticationException) -> Sequence[str]:
    return error.allowed_types if isinstance(error, paramiko.BadAuthenticationType) else []
