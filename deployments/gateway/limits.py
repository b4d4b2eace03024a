"""What a key may still do: counted in this process's memory, so that a request waits for nobody to know.

Requests and tokens a minute are buckets that fill evenly. What a request costs in tokens is known when it
has ended: it is let in while anything is left, and what it took is owed. The day's tokens also count what
other processes wrote down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from deployments.gateway.errors import ApiError, Header, Text

DAY = 86400


_KEY: Final = _("This API key has reached its limit: {limit}. Try again in {seconds} s.")
_PAGES: Final = _("Your pages have reached their limit: {limit}. Try again in {seconds} s; programs use an API key.")


@dataclass(frozen=True)
class Allowance:
    """The limits of one key; None does not limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent: int | None = None
    models: frozenset[str] = frozenset()  # empty: all
    reached: Text = _KEY  # what is said when one of them is


#: What the open pages of one user may do together: more than hands can ask, less than a program would.
PAGES = Allowance(requests_per_minute=300, concurrent=24, reached=_PAGES)


@dataclass
class Bucket:
    """Holds at most ``size`` and fills within a minute; may owe. ``now`` is Unix time throughout."""

    size: int
    level: float
    filled_at: float

    def fill(self, size: int, now: float) -> None:
        """Bring the level up to ``now``; the limit may have been changed meanwhile."""
        added = max(0.0, now - self.filled_at) * size / 60
        self.level = min(float(size), self.level + added + max(0, size - self.size))
        self.size, self.filled_at = size, now

    def seconds_until(self, level: float) -> float:
        return max(0.0, (level - self.level) * 60 / self.size) if self.size else 60.0

    def headers(self, what: str) -> list[Header]:
        """The headers that OpenAI's clients know."""
        left, full = max(0, math.floor(self.level)), f"{self.seconds_until(self.size):.3f}s"
        values = {"limit": self.size, "remaining": left, "reset": full}
        return [
            (f"x-ratelimit-{name}-{what}".encode(), str(value).encode()) for name, value in values.items()
        ]


@dataclass
class Account:
    """What one key has used of its limits."""

    requests: Bucket = field(default_factory=lambda: Bucket(0, 0.0, 0.0))
    tokens: Bucket = field(default_factory=lambda: Bucket(0, 0.0, 0.0))
    day: int = 0  # days since 1970
    today: int = 0  # tokens
    running: int = 0

    def begin(self, allowed: Allowance, written: int, now: float) -> list[Header]:
        """Let a request in; gives the header of its answer. Raises `ApiError` (429) when a limit is reached.

        ``written`` are the day's tokens of this key as the database has them.
        """
        self._new_day(now)
        headers = self._refill(allowed, now)
        if allowed.concurrent is not None and self.running >= allowed.concurrent:
            raise _reached(allowed, _("at most {limit} requests at once"), allowed.concurrent, 1, headers)
        if allowed.requests_per_minute is not None and self.requests.level < 1:
            wait = self.requests.seconds_until(1)
            raise _reached(allowed, _("{limit} requests a minute"), allowed.requests_per_minute, wait, headers)
        if allowed.tokens_per_minute is not None and self.tokens.level <= 0:
            wait = self.tokens.seconds_until(1)
            raise _reached(allowed, _("{limit} tokens a minute"), allowed.tokens_per_minute, wait, headers)
        if allowed.tokens_per_day is not None and max(written, self.today) >= allowed.tokens_per_day:
            raise _reached(allowed, _("{limit} tokens a day"), allowed.tokens_per_day, DAY - now % DAY, headers)
        self.running += 1
        self.requests.level -= 1
        return headers

    def end(self, tokens: int, now: float) -> None:
        """A request that was let in has ended, having used so many tokens."""
        self._new_day(now)
        self.running -= 1
        self.today += tokens
        self.tokens.level -= tokens

    def _new_day(self, now: float) -> None:
        if int(now // DAY) != self.day:
            self.day, self.today = int(now // DAY), 0

    def _refill(self, allowed: Allowance, now: float) -> list[Header]:
        headers: list[Header] = []
        for what, bucket, size in (
            ("requests", self.requests, allowed.requests_per_minute),
            ("tokens", self.tokens, allowed.tokens_per_minute),
        ):
            if size is not None:
                bucket.fill(size, now)
                headers += bucket.headers(what)
        return headers


def check_model(allowed: Allowance, model: str, meant: str) -> None:
    """Raises `ApiError` (403) when the key may not ask this model: neither by this name nor the deployment it means."""
    if allowed.models and not allowed.models & {model, meant}:
        sentence = _("This API key may not use the model “{name}”. It may use: {names}.")
        names = ", ".join(sorted(allowed.models))
        message = format_lazy(sentence, name=model[:100], names=names)
        raise ApiError(403, "model_not_allowed", message, param="model")


def _reached(allowed: Allowance, limit: Text, number: int, wait: float, headers: list[Header]) -> ApiError:
    seconds = max(1, math.ceil(wait))
    message = format_lazy(allowed.reached, limit=format_lazy(limit, limit=number), seconds=seconds)
    return ApiError(429, "rate_limit_exceeded", message, retry_after=seconds, headers=headers)
