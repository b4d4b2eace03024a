"""Two nodes meet: each listens on all planned ports and tries the other's; one measures. Standard library, Python 3.8.

    python3 -c PROGRAM ADDRESS FIRST LAST

Runs on both nodes over a channel of Quarterdeck, and ends with its standard input or after `LIFE` seconds. It says
``{"busy": [ports]}`` once it listens; is told ``{"try": ADDRESS, "skip": [ports]}`` and answers
``{"closed": [ports], "tried": n, "open": port or null}``; or is told ``{"measure": ADDRESS, "port": port}`` and answers
``{"rtt_ms": …, "gbps_out": …, "gbps_in": …}``; ``{"end": true}`` ends it.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import socket
import statistics
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Callable, Dict, List  # noqa: UP035 - the newer places are not in Python 3.8

LIFE = 25.0
#: A lost first packet is sent again after a second.
CONNECT_SECONDS, AT_ONCE = 1.2, 200
SECONDS, STREAMS, PINGS = 0.7, 4, 30
BLOCK = bytes(1 << 18)
PING, SINK, SOURCE = b"P", b"S", b"G"
Ports = List[int]  # noqa: UP006


def listen(address: str, ports: range) -> tuple[list[socket.socket], Ports]:
    """Listeners on all that are free, and those that are not."""
    found, busy = [], []
    for port in ports:
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen(16)
            found.append(listener)
        except OSError:
            listener.close()
            busy.append(port)
    return found, busy


def serve(listeners: list[socket.socket]) -> None:
    """Answer whoever connects, each in a thread of its own."""
    selector = selectors.DefaultSelector()
    for listener in listeners:
        selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _events in selector.select():
            with suppress(OSError):
                connection, _peer = key.fileobj.accept()  # type: ignore[union-attr]
                threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    """Do what the first byte asks for: send it back and what follows, take all, or give for a while."""
    with connection, suppress(OSError):
        connection.settimeout(10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked = connection.recv(1)
        if asked == PING:
            while data := connection.recv(1):
                connection.sendall(data)
        elif asked == SINK:
            connection.sendall(struct.pack(">Q", drain(connection)))
        elif asked == SOURCE:
            pour(connection)


def drain(connection: socket.socket) -> int:
    buffer, total = bytearray(len(BLOCK)), 0
    while size := connection.recv_into(buffer):
        total += size
    return total


def pour(connection: socket.socket) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        connection.sendall(BLOCK)
    connection.shutdown(socket.SHUT_WR)


def closed(peer: str, ports: Ports) -> Ports:
    """The ports that cannot be connected to."""
    found: Ports = []
    for start in range(0, len(ports), AT_ONCE):
        found += closed_of(peer, ports[start : start + AT_ONCE])
    return found


def closed_of(peer: str, ports: Ports) -> Ports:
    selector, refused = selectors.DefaultSelector(), []
    for port in ports:
        trying = socket.socket(socket.AF_INET6 if ":" in peer else socket.AF_INET)
        trying.setblocking(False)
        trying.connect_ex((peer, port))
        selector.register(trying, selectors.EVENT_WRITE, port)
    end = time.monotonic() + CONNECT_SECONDS
    while selector.get_map() and time.monotonic() < end:
        for key, _events in selector.select(max(0.0, end - time.monotonic())):
            tried: Any = key.fileobj
            if tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                refused.append(key.data)
            selector.unregister(tried)
            tried.close()
    for key in list(selector.get_map().values()):
        refused.append(key.data)
        key.fileobj.close()  # type: ignore[union-attr]
    return sorted(refused)


def connected(peer: str, port: int, asked: bytes) -> socket.socket:
    connection = socket.create_connection((peer, port), 3)
    connection.settimeout(5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(asked)
    return connection


def round_trip(peer: str, port: int) -> float:
    """Milliseconds: the middle one of some."""
    times: list[float] = []
    with connected(peer, port, PING) as connection:
        end = time.monotonic() + 1
        while len(times) < PINGS and time.monotonic() < end:
            began = time.perf_counter()
            connection.sendall(b".")
            connection.recv(1)
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def sent(peer: str, port: int) -> int:
    with connected(peer, port, SINK) as connection:
        pour(connection)
        return int(struct.unpack(">Q", connection.recv(8, socket.MSG_WAITALL))[0])


def received(peer: str, port: int) -> int:
    with connected(peer, port, SOURCE) as connection:
        return drain(connection)


def rate(move: Callable[[str, int], int], peer: str, port: int) -> float:
    """Gbit/s over some connections at the same time, as NCCL opens several too."""
    moved: Ports = []
    threads = [threading.Thread(target=lambda: moved.append(move(peer, port)), daemon=True) for _ in range(STREAMS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 5)
    return sum(moved) * 8 / (time.perf_counter() - began) / 1e9


def meet(order: Dict[str, Any], ports: range) -> Dict[str, Any]:  # noqa: UP006
    """What is told of the other node."""
    if "measure" in order:
        peer, port = order["measure"], order["port"]
        return {"rtt_ms": round_trip(peer, port), "gbps_out": rate(sent, peer, port),
                "gbps_in": rate(received, peer, port)}  # fmt: skip
    tried = [port for port in ports if port not in order["skip"]]
    unreachable = closed(order["try"], tried)
    reached = sorted(set(tried) - set(unreachable))
    return {"closed": unreachable, "tried": len(tried), "open": reached[0] if reached else None}


def main() -> None:
    address, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    end = threading.Timer(LIFE, os._exit, (1,))
    end.daemon = True
    end.start()
    ports = range(first, last + 1)
    listeners, busy = listen(address, ports)
    threading.Thread(target=serve, args=(listeners,), daemon=True).start()
    print(json.dumps({"busy": busy}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "end" in order:
            return
        try:
            found = meet(order, ports)
        except (OSError, statistics.StatisticsError, struct.error) as error:
            found = {"error": str(error)}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
