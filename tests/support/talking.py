"""Model servers for the playground's tests: stand-ins that stream like vLLM, each with a character of its own.

What a deployment's model is told by its name: ``thinker`` reasons first, ``base`` has no chat template, ``slow`` never
ends, ``broken`` dies in the middle; the others answer a prompt in Markdown.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from tests.upstream import DONE, END, HEAD, Asked, StandIn, answer_json, chunk, event, stand_in

SUMMIT = "世界上最高的山峰是**珠穆朗玛峰**，海拔 8,848.86 米。\n\n- 位置：中国与尼泊尔边境\n- 藏语名意为“大地之母”"
MARKDOWN = (
    "A list is reversed in place:\n\n```python\ndef reverse(head):\n    before = None\n    while head:\n"
    "        head.next, before, head = before, head, head.next\n    return before\n```\n\n| step | cost |\n|---|---|\n"
    "| walk | O(n) |\n| memory | O(1) |\n\n1. `before` is the part that is done\n2. `head` the rest <b>of it</b>\n"
)
NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one."
)
NOT_MULTIMODAL = "At most 0 image(s) may be provided in one prompt. This is not a multimodal model."


async def talk(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Answer as the model that was named would."""
    body = asked.json
    chat = "/chat/" in asked.line
    model = body["model"]
    if chat and model.startswith("base"):
        return await _refuse(server, writer, NO_TEMPLATE)
    if chat and _has_pictures(body) and model != "seer":
        return await _refuse(server, writer, NOT_MULTIMODAL)
    await server.send(writer, HEAD % b"text/event-stream; charset=utf-8")
    count = 0
    for kind, piece in _pieces(model, body, chat):
        await asyncio.sleep(0.4 if model == "slow" else 0.01)
        await server.send(writer, chunk(_event(model, chat, kind, piece)))
        count += 1
        if model == "broken" and count == 3:
            raise ConnectionResetError
        if count == int(body.get("max_tokens") or 1 << 30):
            break
    usage = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}
    await server.send(writer, chunk(_last(model, chat, "stop" if count < body["max_tokens"] else "length")))
    await server.send(writer, chunk(event({"id": "c1", "model": model, "choices": [], "usage": usage})))
    await server.send(writer, chunk(DONE) + END)


async def _refuse(server: StandIn, writer: asyncio.StreamWriter, why: str) -> None:
    error = {"message": why, "type": "BadRequestError", "param": None, "code": 400}
    await answer_json(server, writer, {"error": error}, "400 Bad Request")


def _has_pictures(body: dict[str, Any]) -> bool:
    return any(isinstance(message["content"], list) for message in body["messages"])


def _pieces(model: str, body: dict[str, Any], chat: bool) -> Iterator[tuple[str, str]]:
    """Tokens, of about three characters each."""
    prompt = body["messages"][-1]["content"] if chat else body["prompt"]
    if model == "thinker":
        yield from (("reasoning_content", one) for one in _cut("用户问的是世界上最高的山峰。按海拔是珠穆朗玛峰。"))
    text = SUMMIT if "山" in str(prompt) else MARKDOWN
    if model == "seer":
        text = "A red square."
    for _again in range(1000 if model == "slow" else 1):
        yield from (("content", one) for one in _cut(text))


def _cut(text: str) -> Iterator[str]:
    return (text[at : at + 3] for at in range(0, len(text), 3))


def _event(model: str, chat: bool, kind: str, piece: str) -> bytes:
    said: dict[str, Any] = {"delta": {kind: piece}} if chat else {"text": piece}
    return event({"id": "c1", "model": model, "choices": [{"index": 0, "finish_reason": None, **said}]})


def _last(model: str, chat: bool, reason: str) -> bytes:
    said: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
    return event({"id": "c1", "model": model, "choices": [{"index": 0, "finish_reason": reason, **said}]})


@asynccontextmanager
async def _until(ended: asyncio.Event) -> AsyncIterator[StandIn]:
    async with stand_in(talk) as server:
        yield server
        await ended.wait()


@contextmanager
def talking() -> Iterator[StandIn]:
    """A stand-in in a thread of its own; its `port` serves every model."""
    started = threading.Event()
    found: list[Any] = []

    async def run() -> None:
        ended = asyncio.Event()
        async with _until(ended) as server:
            found.extend([server, asyncio.get_running_loop(), ended])
            started.set()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(10)
    server, loop, ended = found
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
