"""A stand-in for vLLM's server: real HTTP on loopback, no model; it answers as a test tells it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Asked:
    """One request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Behaviour = Callable[["StandIn", Asked, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class StandIn:
    """What arrived and how far each answer came. ``behaviour`` answers one request."""

    behaviour: Behaviour
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    sent: int = 0
    began: asyncio.Event = field(default_factory=asyncio.Event)  # the first request is in
    hung_up: asyncio.Event = field(
        default_factory=asyncio.Event
    )  # a client left before its answer was complete

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        ahead = b""
        try:
            while True:
                asked = await _read(reader, ahead)
                self.asked.append(asked)
                self.began.set()
                ahead = await self._answer(asked, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        """Runs the behaviour while the client stays; gives what arrived of the next request meanwhile."""
        answer = asyncio.ensure_future(self.behaviour(self, asked, writer))
        watch = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() or isinstance(answer.exception(), ConnectionError):
            self.hung_up.set()
            answer.cancel()
        watch.cancel()
        _, ahead = await asyncio.gather(answer, watch, return_exceptions=True)
        if answer.cancelled() or answer.exception() is not None or writer.is_closing():
            raise ConnectionResetError
        return ahead if isinstance(ahead, bytes) else b""

    async def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()
        self.sent += len(data)


async def _read(reader: asyncio.StreamReader, ahead: bytes) -> Asked:
    head = (ahead + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in lines)}
    return Asked(line, headers, await reader.readexactly(int(headers.get("content-length", 0))))


@asynccontextmanager
async def stand_in(behaviour: Behaviour) -> AsyncIterator[StandIn]:
    """The stand-in, listening on a free port of loopback."""
    server_side = StandIn(behaviour)
    server = await asyncio.start_server(server_side.serve, "127.0.0.1", 0)
    server_side.port = server.sockets[0].getsockname()[1]
    try:
        yield server_side
    finally:
        server.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def token(text: str) -> bytes:
    """One event of a streamed chat completion."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, "logprobs": None}
    return event(
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    )


USAGE = {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3}
USAGE_EVENT = event(
    {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": USAGE}
)
DONE = b"data: [DONE]\n\n"


async def answer_json(
    server: StandIn, writer: asyncio.StreamWriter, data: object, status: str = "200 OK",
    separators: tuple[str, str] | None = None,
) -> None:
    content = json.dumps(data, separators=separators).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    await server.send(writer, head.encode() + content)


async def chat(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Three tokens, as vLLM sends them: streamed or whole, with usage where it is asked for."""
    if not asked.json.get("stream"):
        message = {"role": "assistant", "content": "Ada Bea Cy"}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        whole = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return await answer_json(server, writer, whole | {"usage": USAGE, "prompt_logprobs": None})
    await server.send(writer, HEAD % b"text/event-stream; charset=utf-8")
    for word in ("Ada", " Bea", " Çy"):
        await server.send(writer, chunk(token(word)))
    if (asked.json.get("stream_options") or {}).get("include_usage"):
        await server.send(writer, chunk(USAGE_EVENT))
    await server.send(writer, chunk(DONE) + END)
