"""The client's hang-up ends the work at once, in whatever phase it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from deployments.gateway.body import Receive


class Line(Protocol):
    """A client's connection: the scope's ``quarterdeck.line`` under our own server, and cheaper than ASGI's way."""

    def write_body(self, data: bytes) -> bool:
        """Send a piece of an answer that has begun. False, and nothing done, where ASGI's `send` has to do it."""

    def on_hang_up(self, call: Callable[[], None] | None) -> None:
        """Call this once the client is gone, at once if it is already; None: nobody wants to know any more."""


class UntilHangUp:
    """A block that is cancelled when the client goes away; then it ends quietly and ``gone`` is true.

    The request's body must have been read: what `receive` gives next can only be the hang-up.
    """

    def __init__(self, receive: Receive, line: Line | None) -> None:
        self.gone = False
        self._receive, self._line = receive, line
        self._watcher: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        if self._line is not None:
            self._line.on_hang_up(self._left)
        else:
            self._watcher = asyncio.ensure_future(self._watch())
        return self

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        self.gone = True
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._line is not None:
            self._line.on_hang_up(None)
        if self._watcher is not None:
            self._watcher.cancel()
        # As asyncio.timeout does: our own cancellation ends here, one from outside goes on.
        ours = self.gone and self._task is not None and self._task.uncancel() == 0
        return ours and kind is not None and issubclass(kind, asyncio.CancelledError)
