"""uvicorn's HTTP protocol with bounds on a request's head; uvicorn itself would wait for it without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 * 1024  # bytes
PATIENCE = 30.0  # seconds from the first byte of a head to its last, and from a connection to its first request


class BoundedHttp(HttpToolsProtocol):
    """For ``uvicorn.Config(http=…)``. A head that is too large or too slow ends its connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_size = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._lost = False
        self._on_hang_up: Callable[[], None] | None = None

    def on_hang_up(self, call: Callable[[], None] | None) -> None:
        """See `hangup.Line`. One request of a connection is worked on at a time."""
        self._on_hang_up = call
        if call is not None and self._lost:
            self.loop.call_soon(call)

    def write_body(self, data: bytes) -> bool:
        """See `hangup.Line`. False while the client is slow, and for an answer of another kind than in chunks."""
        if self.flow.write_paused or not self.cycle.chunked_encoding or self.cycle.response_complete or self._lost:
            return False
        if data:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)
        self._lost = True
        if self._on_hang_up is not None:
            self._on_hang_up()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_timer is not None:
            self._head_size += len(data)
            if self._head_size > HEAD_LIMIT:
                self._give_up()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["quarterdeck.line"] = self  # type: ignore[typeddict-unknown-key]
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_is_here()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._head_is_here()
        self._head_timer = self.loop.call_later(PATIENCE, self._give_up)

    def _head_is_here(self) -> None:
        self._head_size = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_is_here()
        if not self.transport.is_closing():
            self.send_400_response("The request's head is too large or did not arrive in time.")
