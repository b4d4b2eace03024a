"""From a node to its host: which key, which connection. One connection a node and process, opened when it is needed."""

from __future__ import annotations

import threading
import time

from nodes.models import Identity, Node
from nodes.remote.errors import HostKeyChanged, HostProblem
from nodes.remote.host import Host
from nodes.remote.local import LocalHost
from nodes.remote.ssh import HostKey, SshHost, SshLogin, connect, new_key

_open: dict[int, tuple[str, SshHost]] = {}
_lock = threading.Lock()
_locks: dict[int, threading.Lock] = {}
_failed: dict[int, tuple[str, float, HostProblem]] = {}
_FAILURE_SECONDS = 3


def identity() -> Identity:
    """Quarterdeck's own key pair, made when it is first asked for."""
    found = Identity.objects.first()
    if found is None:
        private, public = new_key()
        found, _ = Identity.objects.get_or_create(pk=1, defaults={"private_key": private, "public_key": public})
        found.refresh_from_db()
    return found


def open_host(node: Node) -> Host:
    """A new connection to the node, which the caller closes. Raises `HostProblem`.

    A changed host key is remembered on the node, so that its page can show it.
    """
    if node.kind == Node.Kind.LOCAL:
        return LocalHost()
    login = SshLogin(node.name, node.address, node.port, node.user, private_key=identity().private_key)
    try:
        host = connect(login, HostKey(node.host_key))
    except HostKeyChanged as error:
        Node.objects.filter(pk=node.pk).update(offered_host_key=error.offered)
        raise
    if node.offered_host_key:  # it shows the pinned key again: nobody should approve the other one by mistake
        Node.objects.filter(pk=node.pk, offered_host_key=node.offered_host_key).update(offered_host_key="")
    return host


def shared_host(node: Node) -> Host:
    """This process's connection to the node, kept open for the next caller. Raises `HostProblem`."""
    if node.kind == Node.Kind.LOCAL:
        return LocalHost()
    with _lock:
        lock = _locks.setdefault(node.pk, threading.Lock())
    with lock:  # one thread connects, the others wait for it, callers of other nodes do not
        key, host = _open.get(node.pk, ("", None))
        if host is not None and host.alive and key == node.host_key:
            return host
        if host is not None:
            host.close()
        _raise_again(node)
        try:
            fresh = open_host(node)
        except HostProblem as error:
            _failed[node.pk] = (node.host_key, time.monotonic(), error)
            raise
        assert isinstance(fresh, SshHost)
        _open[node.pk] = (node.host_key, fresh)
        return fresh


def _raise_again(node: Node) -> None:
    """Whoever waited while a connection failed is told so at once, instead of each waiting for a failure of its own."""
    key, when, error = _failed.get(node.pk, ("", 0.0, None))
    if error is not None and key == node.host_key and time.monotonic() - when < _FAILURE_SECONDS:
        raise error
