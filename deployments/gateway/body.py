"""The request's body: read within bounds, its model found, rewritten only where metering needs it.

The JSON is validated and searched by msgspec without building what it holds: an adversary's 20 MB of
``[[[[`` or of a million small objects cost neither memory nor a second.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from deployments.gateway.begun import Begun
from deployments.gateway.errors import ApiError

LIMIT = 20 * 1024 * 1024  # bytes
ALTOGETHER = 128 * 1024 * 1024  # bytes of all bodies that wait for their answer to begin
PATIENCE = 120.0  # seconds for the whole body to arrive

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_BOUNDARY = re.compile(rb'boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="?([^";\r\n]+)')
_MOST_PARTS = 100
_HEAD, _VALUE = 2048, 256  # bytes of a part's headers, and of a value that is looked at


class HungUp(Exception):
    """The client went away before its request was complete."""


class Room:
    """What all bodies may take together in this process."""

    def __init__(self) -> None:
        self._left = ALTOGETHER

    def take(self, size: int) -> None:
        """Raises `ApiError` (503) where there is not so much left."""
        if size > self._left:
            sentence = _("The gateway holds as many large requests as it can. Try again soon.")
            raise ApiError(503, "too_much_at_once", sentence, retry_after=2)
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size


class Held:
    """A body and the room it takes, until it is let go: once its answer has begun nobody needs it more."""

    def __init__(self, content: bytes, room: Room) -> None:
        self.content, self._room = content, room

    def let_go(self) -> None:
        self._room.give(len(self.content))
        self.content = b""


class _Options(msgspec.Struct):
    include_usage: bool | None = None


class _Envelope(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    stream_options: _Options | None = None


_decode = msgspec.json.Decoder(_Envelope).decode
_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode


@dataclass(frozen=True)
class Ask:
    """What the gateway needs to know of a body."""

    model: str
    stream: bool
    wants_usage: bool  # the client asked for the usage event itself


async def read(receive: Receive, declared: bytes | None, room: Room) -> Held:
    """The whole body. Raises `ApiError` (413 above `LIMIT`, 408 when it takes too long, 503) and `HungUp`.

    ``declared`` is the content-length, so that what is announced too large is refused before it is sent.
    """
    if declared and int(declared) > LIMIT:
        raise _too_large()
    first = Begun(receive())
    if first.over and not first.value.get("more_body", False):  # it came with the head, as most do
        content = _part(first.value)
        room.take(len(content))
        return Held(content, room)
    try:
        async with asyncio.timeout(PATIENCE):
            return Held(await _collect(first.value if first.over else await first, receive, room), room)
    except TimeoutError as error:
        sentence = _("The request's body did not arrive in time. Send it again.")
        close = [(b"connection", b"close")]  # nobody waits for the rest
        raise ApiError(408, "request_timeout", sentence, headers=close) from error


async def _collect(message: Message, receive: Receive, room: Room) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        while True:
            part = _part(message)
            if size + len(part) > LIMIT:
                raise _too_large()
            room.take(len(part))
            size += len(part)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await receive()
    except BaseException:
        room.give(size)
        raise


def _part(message: Message) -> bytes:
    """What one message has of the body."""
    if message["type"] == "http.disconnect":
        raise HungUp
    part: bytes = message.get("body", b"")
    if len(part) > LIMIT:
        raise _too_large()
    return part


def _too_large() -> ApiError:
    sentence = _("The request is larger than 20 MB. Send less at once, or images in a smaller size.")
    return ApiError(413, "request_too_large", sentence)


def understand(body: bytes, content_type: bytes) -> Ask:
    """What a body asks for. Raises `ApiError` (400) for one that is not what the endpoint takes."""
    if content_type.startswith(b"multipart/form-data"):
        return _of_form(body, content_type)
    try:
        envelope = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken(error) from error
    if not envelope.model:
        raise _no_model()
    options = envelope.stream_options
    wants_usage = options is not None and bool(options.include_usage)
    return Ask(envelope.model, bool(envelope.stream), wants_usage)


def _of_form(body: bytes, content_type: bytes) -> Ask:
    fields = _fields(body, content_type)
    model = fields.get(b"model")
    if not model:
        raise _no_model()
    wants_stream = fields.get(b"stream", b"").lower() in (b"true", b"1")
    return Ask(model.decode("utf-8", "replace"), wants_stream, wants_usage=True)


def _fields(body: bytes, content_type: bytes) -> dict[bytes, bytes]:
    """The short values of a form; of a field that is given twice the last, as the model server takes it."""
    return {name: body[begin:end] for name, begin, end in _values(body, content_type)}


def _values(body: bytes, content_type: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Where the short values of a form are. Each byte is passed over once: it may be a recording, or hostile."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        return
    mark = b"\r\n--" + (found[1] or found[2])
    end = body.find(mark[2:]) - 2  # the first mark may have no line before it
    for _part in range(_MOST_PARTS):
        begin = end + len(mark)
        end = body.find(mark, begin)
        if end < 0:
            break
        head, _gap, _value = body[begin : min(end, begin + _HEAD + _VALUE)].partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if name and end - begin - len(head) - 4 <= _VALUE:
            yield name[1], min(end, begin + len(head) + 4), end


def _no_model() -> ApiError:
    sentence = _("The request does not name a model. Give one in the field “model”.")
    return ApiError(400, "missing_model", sentence, param="model")


def _broken(error: Exception) -> ApiError:
    plain = isinstance(error, msgspec.DecodeError)
    detail = str(error) if plain else "it is nested too deeply or is not UTF-8"
    sentence = _("The request's body is not the JSON that this endpoint takes: {detail}.")
    return ApiError(400, "invalid_json", format_lazy(sentence, detail=detail))


def renamed(body: bytes, content_type: bytes, model: str) -> bytes:
    """The body with another model's name in place of the one it has: an alias becomes what its server knows."""
    if content_type.startswith(b"multipart/form-data"):
        places = [(begin, end) for name, begin, end in _values(body, content_type) if name == b"model"]
        for begin, end in reversed(places):
            body = body[:begin] + model.encode() + body[end:]
        return body
    fields = _shallow(body) or {}
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def with_usage(body: bytes) -> bytes:
    """The body of a streamed completion, asking for the usage event; other values keep their bytes."""
    fields = _shallow(body) or {}
    options = _shallow(fields.get("stream_options", b"null")) or {}
    options["include_usage"] = msgspec.Raw(b"true")
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)
