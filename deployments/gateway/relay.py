"""An answer on its way back: bytes forwarded unparsed, events kept whole, the usage read at the end."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_decode = json.JSONDecoder().raw_decode
_TAIL = 4096  # bytes kept of the end of an answer, where its usage is
_HELD = 256 * 1024  # bytes of an unfinished event that are held back at most
#: Unescaped quotes: inside a JSON string these bytes cannot occur.
_NO_CHOICES = re.compile(rb'"choices": ?\[\]')
_USAGE = re.compile(rb'"usage": ?(?=\{)')


@dataclass(frozen=True)
class Tokens:
    """What an answer cost; ``estimated`` when it ended before the server said so."""

    prompt: int
    completion: int
    estimated: bool = False


class Relay:
    """The bytes of one answer: `feed` gives what may be sent on, `tokens` what it cost.

    A stream of events is passed on in whole events, so that an error can follow at any point. With
    ``strip`` the usage event, which has no choices, is dropped: the client did not ask for it.
    """

    def __init__(self, events: bool, strip: bool) -> None:
        self._events, self._strip = events, strip
        self._held = b""
        self._count = 0
        self._before, self._last = b"", b""  # the end of the answer, where its usage is

    def feed(self, data: bytes) -> bytes:
        """What may be sent now. May be empty."""
        if not self._events:
            self._last = data if len(data) > _TAIL else self._last[-_TAIL:] + data
            return data
        if self._held or not data.endswith(b"\n\n"):
            data = self._whole(data)
        if data:
            self._count += data.count(b"data: {")
            self._before, self._last = self._last, data
        if self._strip and b'"usage"' in data and _NO_CHOICES.search(data):
            return _without_usage(data)
        return data

    def rest(self) -> bytes:
        """What was held back, once the answer has ended."""
        held, self._held = self._held, b""
        return held

    def _whole(self, data: bytes) -> bytes:
        """Whole events only; what is unfinished is held back, unless it is too much."""
        data = self._held + data
        cut = data.rfind(b"\n\n") + 2
        if cut < 2:
            cut = 0 if len(data) <= _HELD else len(data)
        self._held = data[cut:]
        return data[:cut]

    def tokens(self) -> Tokens:
        """The usage that the server reported last, or the events that were seen."""
        usage = _last_usage((self._before + self._last)[-2 * _TAIL :])
        if usage is None:
            return Tokens(0, self._count, estimated=True)
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        completion = usage.get("completion_tokens", usage.get("output_tokens"))
        return Tokens(_whole_number(prompt), _whole_number(completion))


def _without_usage(data: bytes) -> bytes:
    """Whole events without the one that has no choices, only usage: among the last, so it is looked for from there."""
    end = len(data)
    while (at := data.rfind(b'"usage"', 0, end)) >= 0:
        before = data.rfind(b"\n\n", 0, at)
        begin = before + 2 if before >= 0 else 0
        after = data.find(b"\n\n", at) + 2
        event = data[begin:after]
        if _USAGE.search(event) and _NO_CHOICES.search(event):
            data = data[:begin] + data[after:]
        end = begin
    return data


def _last_usage(tail: bytes) -> dict[str, Any] | None:
    at = max(tail.rfind(b'"usage":{'), tail.rfind(b'"usage": {'))
    if at < 0:
        return None
    try:
        usage, _ = _decode(tail[tail.index(b"{", at) :].decode("utf-8", "replace"))
    except ValueError:
        return None
    return usage if isinstance(usage, dict) else None


def _whole_number(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**40 else 0
