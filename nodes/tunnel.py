"""A port of a node, brought to this machine over the node's SSH connection: for nodes that are reached no other way.

Slower than a direct connection, since Python carries every byte; used only where there is no direct one.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from django.db import connection

from nodes.hosts import close_shared, shared_host
from nodes.models import Node
from nodes.remote.errors import HostProblem
from nodes.remote.ssh import SshHost
from nodes.remote.ssh_channel import SshStream

_PIECE = 1 << 16
#: Connections carried at once by one tunnel; more wait until one has ended.
_MOST = 128


class Tunnel:
    """Listens on a loopback port here and carries each connection to ``address:port`` as the node sees it."""

    def __init__(self, node: Node, address: str, port: int) -> None:
        self.node, self.address, self.remote_port = node, address, port
        self._room = threading.BoundedSemaphore(_MOST)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name=f"tunnel-{node.name}-{port}", daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that are open go on."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            self._room.acquire()
            try:
                here, _peer = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._carry, args=[here], daemon=True).start()

    def _carry(self, here: socket.socket) -> None:
        try:
            with here:
                host = shared_host(self.node)
                if isinstance(host, SshHost):
                    self._join(here, host.connect_from_there(self.address, self.remote_port))
        except (HostProblem, OSError):
            pass  # whoever connected sees its connection end, as with any server that is gone
        finally:
            connection.close()  # this thread's own
            self._room.release()

    def _join(self, here: socket.socket, there: SshStream) -> None:
        upwards = threading.Thread(target=_pump_up, args=[here, there], daemon=True)
        upwards.start()
        try:
            while data := there.receive(_PIECE):
                here.sendall(data)
        finally:
            with suppress(OSError):
                here.shutdown(socket.SHUT_RDWR)  # wakes the other direction
            there.close()
            upwards.join()


def _pump_up(here: socket.socket, there: SshStream) -> None:
    try:
        while data := here.recv(_PIECE):
            there.send(data)
        there.finish()
    except OSError:
        there.close()


_tunnels: dict[tuple[int, str, int], Tunnel] = {}
_lock = threading.Lock()


def local_port(node: Node, address: str, port: int) -> int:
    """The loopback port here that leads to the node's ``address:port``; opened when it is first asked for."""
    with _lock:
        key = (node.pk, address, port)
        if key not in _tunnels:
            _tunnels[key] = Tunnel(node, address, port)
        _tunnels[key].node = node  # as it is now: its pinned key may have changed
        if node.key_changed:
            close_shared(node)  # and with it all that is carried at this moment
        return _tunnels[key].port
