"""The hosts' way to a package index: an HTTP proxy on this machine's address in the lab, for pip and apt alone.

``door.py ADDRESS PORT [stay]``; standard library only. Ends with its standard input, unless it is to stay.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from urllib.parse import urlsplit

LONGEST_HEAD = 1 << 16


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _version = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        if method == "CONNECT":
            host, _colon, port = target.rpartition(":")
            there = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            url = urlsplit(target)
            there = await asyncio.open_connection(url.hostname, url.port or 80)
            there[1].write(request(method, url.path or "/", url.query, head))
        await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        with suppress(OSError):
            writer.write(f"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n{error}\n".encode())
    finally:
        writer.close()


def request(method: str, path: str, query: str, head: bytes) -> bytes:
    """The request as its own server wants it; one a connection, so that nothing has to be counted."""
    lines = head.split(b"\r\n")[1:-2]
    kept = [line for line in lines if not line.lower().startswith((b"connection:", b"proxy-"))]
    first = f"{method} {path}{'?' + query if query else ''} HTTP/1.1".encode()
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(address: str, port: str, *stay: str) -> None:
    server = await asyncio.start_server(serve, address, int(port), limit=LONGEST_HEAD)
    print("up", flush=True)
    async with server:
        if stay:
            await server.serve_forever()
        else:
            await asyncio.to_thread(sys.stdin.read)
            server.close()


asyncio.run(main(*sys.argv[1:]))
