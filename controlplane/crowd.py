"""How many websockets one user may hold open at once: each costs a task and a connection to Redis."""

from __future__ import annotations

from collections import Counter
from typing import Any

MOST = 100  # of one user in one process: a page has about five
TRY_LATER = 1013  # the page tries again, less and less often


class NotTooMany:
    """Lets a user's websocket through while they have fewer than ``most`` open; more are told to try later."""

    def __init__(self, inner: Any, most: int = MOST) -> None:
        self._inner, self._most = inner, most
        self._open: Counter[Any] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        user = scope["user"].pk
        if user is not None and self._open[user] >= self._most:
            await receive()
            await send({"type": "websocket.accept"})  # a browser tells a page the code only of an accepted one
            await send({"type": "websocket.close", "code": TRY_LATER})
            return
        self._open[user] += 1
        try:
            await self._inner(scope, receive, send)
        finally:
            self._open[user] -= 1
            if not self._open[user]:
                del self._open[user]
