"""A node's port over its SSH connection, on a real OpenSSH server."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from controlplane.secrets import Secret
from nodes import hosts, registration
from nodes.models import Node
from nodes.registration import Login
from nodes.remote.errors import Unreachable
from nodes.remote.ssh import SshHost
from nodes.tunnel import Tunnel
from tests.support import sshd as sshd_support
from tests.support.sshd import free_port

pytestmark = [pytest.mark.sshd, pytest.mark.valkey, pytest.mark.django_db(transaction=True)]


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def inner_port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    server = sshd_support.start(tmp_path)
    login = Login("te1", server.address, server.port, server.user, private_key=Secret(server.key))
    yield registration.register(login, server.host_key.line, None)
    hosts.close_all()
    server.stop()


def test_requests_reach_the_nodes_port_and_bytes_come_back_unchanged(node: Node, inner_port: int) -> None:
    tunnel = Tunnel(node, "127.0.0.1", inner_port)
    body = bytes(range(256)) * 4096
    with httpx.Client(base_url=f"http://127.0.0.1:{tunnel.port}", trust_env=False) as client:
        for _ in range(3):
            assert client.post("/", content=body).content == body
    tunnel.close()


def test_many_connections_are_carried_at_once(node: Node, inner_port: int) -> None:
    tunnel = Tunnel(node, "127.0.0.1", inner_port)
    answers: list[bytes] = []

    def ask(n: int) -> None:
        answers.append(httpx.post(f"http://127.0.0.1:{tunnel.port}/", content=b"%d" % n, trust_env=False).content)

    threads = [threading.Thread(target=ask, args=[n]) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(b"%d" % n for n in range(16))
    tunnel.close()


def test_a_port_where_nobody_listens_ends_the_connection(node: Node) -> None:
    tunnel = Tunnel(node, "127.0.0.1", free_port())
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{tunnel.port}/", trust_env=False)
    host = hosts.shared_host(node)
    assert isinstance(host, SshHost)
    with pytest.raises(Unreachable, match=r"does not reach 127\.0\.0\.1 port"):
        host.connect_from_there("127.0.0.1", free_port())
    tunnel.close()
