"""The client's hang-up ends the work at once, in whatever phase it is."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from deployments.gateway.body import Receive


class UntilHangUp:
    """A block that is cancelled when the client goes away; then it ends quietly and ``gone`` is true.

    The request's body must have been read: what `receive` gives next can only be the hang-up.
    """

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self._receive = receive

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._watcher = asyncio.ensure_future(self._watch())
        return self

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._watcher.cancel()
        # As asyncio.timeout does: our own cancellation ends here, one from outside goes on.
        ours = self.gone and self._task is not None and self._task.uncancel() == 0
        return ours and kind is not None and issubclass(kind, asyncio.CancelledError)
