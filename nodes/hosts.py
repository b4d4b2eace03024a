"""From a node to its host: which key, which connection. One connection a node and process, opened when it is needed.

A node (or the jump host before it) that showed another host key than the pinned one is not talked to: what was open is
closed, and every call connects anew, which fails until the pinned key is shown again or an admin approved the other.
"""

from __future__ import annotations

import threading
import time

from nodes.models import Bastion, Identity, Node
from nodes.remote.errors import HostKeyChanged, HostProblem
from nodes.remote.host import Host
from nodes.remote.local import LocalHost
from nodes.remote.ssh import HostKey, SshHost, SshLogin, connect, new_key

Server = Node | Bastion

_open: dict[str, tuple[str, SshHost]] = {}
_lock = threading.Lock()
_locks: dict[str, threading.Lock] = {}
_failed: dict[str, tuple[str, float, HostProblem]] = {}
_FAILURE_SECONDS = 3
#: A connection that nobody used for so long is closed; so none to a node that is gone stays for ever.
IDLE_SECONDS = 300
_tidying = threading.Event()


def identity() -> Identity:
    """Quarterdeck's own key pair, made when it is first asked for."""
    found = Identity.objects.first()
    if found is None:
        private, public = new_key()
        found, _ = Identity.objects.get_or_create(pk=1, defaults={"private_key": private, "public_key": public})
        found.refresh_from_db()
    return found


def own_login(server: Server) -> SshLogin:
    """How Quarterdeck itself signs in there."""
    name = server.name if isinstance(server, Node) else server.address
    return SshLogin(name, server.address, server.port, server.user, private_key=identity().private_key)


def open_host(node: Node) -> Host:
    """A new connection to the node, which the caller closes. Raises `HostProblem`.

    A changed host key is remembered on the node, so that its page can show it.
    """
    return LocalHost() if node.kind == Node.Kind.LOCAL else _connect(node)


def shared_host(node: Node) -> Host:
    """This process's connection to the node, kept open for the next caller. Raises `HostProblem`."""
    return LocalHost() if node.kind == Node.Kind.LOCAL else _shared(node)


def jump_host(node: Node | None, bastion: Bastion | None) -> SshHost | None:
    """The shared connection to a jump host, if there is one. Raises `HostProblem`."""
    before = bastion if node is None or node.kind == Node.Kind.LOCAL else node
    return _shared(before) if before is not None else None


def keep(server: Server, host: SshHost) -> None:
    """Make a fresh connection the shared one, for the next caller."""
    key = _key(server)
    with _lock_of(key):
        _drop(key)
        _open[key] = (server.host_key, host)
    _tidy_later()


def close_shared(server: Server) -> None:
    """Close this process's connection to the server, and all that is carried over it."""
    key = _key(server)
    with _lock_of(key):
        _drop(key)
        _failed.pop(key, None)


def close_all() -> None:
    """Close every connection of this process."""
    for key in list(_open):
        with _lock_of(key):
            _drop(key)


def close_idle() -> None:
    """Close what is dead or was not used for `IDLE_SECONDS`."""
    for key, (_pin, host) in list(_open.items()):
        if not host.alive or host.idle_seconds > IDLE_SECONDS:
            with _lock_of(key):
                if _open.get(key, ("", None))[1] is host:
                    _drop(key)


def _key(server: Server) -> str:
    return f"{server._meta.model_name}:{server.pk}"


def _lock_of(key: str) -> threading.Lock:
    with _lock:
        return _locks.setdefault(key, threading.Lock())


def _drop(key: str) -> None:
    _pin, host = _open.pop(key, ("", None))
    if host is not None:
        host.close()


def _shared(server: Server) -> SshHost:
    key = _key(server)
    with _lock_of(key):  # one thread connects, the others wait for it, callers of other nodes do not
        pin, host = _open.get(key, ("", None))
        if host is not None and host.alive and pin == server.host_key and not server.key_changed:
            host.used_at = time.monotonic()
            return host
        _drop(key)
        _raise_again(key, server)
        try:
            fresh = _connect(server)
        except HostProblem as error:
            _failed[key] = (server.host_key, time.monotonic(), error)
            raise
        _open[key] = (server.host_key, fresh)
    _tidy_later()
    return fresh


def _connect(server: Server) -> SshHost:
    through = jump_host(server.jump, server.bastion) if isinstance(server, Node) else None
    rows = type(server)._default_manager.filter(pk=server.pk)
    try:
        host = connect(own_login(server), HostKey(server.host_key), through)
    except HostKeyChanged as error:
        if rows.exclude(offered_host_key=error.offered).update(offered_host_key=error.offered):
            _tell(server)
        raise
    if server.offered_host_key:  # it shows the pinned key again: nobody should approve the other one by mistake
        rows.filter(offered_host_key=server.offered_host_key).update(offered_host_key="")
        server.offered_host_key = ""
        _tell(server)
    return host


def _tell(server: Server) -> None:
    """Have pages that show the server, or a node behind it, drawn anew."""
    for node in [server] if isinstance(server, Node) else server.reached_through.all():
        node.poke()


def _raise_again(key: str, server: Server) -> None:
    """Whoever waited while a connection failed is told so at once, instead of each waiting for a failure of its own."""
    pin, when, error = _failed.get(key, ("", 0.0, None))
    if error is not None and pin == server.host_key and time.monotonic() - when < _FAILURE_SECONDS:
        raise error


def _tidy_later() -> None:
    if not _tidying.is_set():
        _tidying.set()
        threading.Thread(target=_tidy, name="tidy-connections", daemon=True).start()


def _tidy() -> None:
    while True:
        time.sleep(30)
        close_idle()
