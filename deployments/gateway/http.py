"""uvicorn's HTTP protocol with bounds on a request's head; uvicorn itself would wait for it without end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import httptools
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
        self._fed = b""  # what the parser is working on

    def on_hang_up(self, call: Callable[[], None] | None) -> None:
        """See `hangup.Line`. One request of a connection is worked on at a time."""
        self._on_hang_up = call
        if call is None:
            return
        if self._lost:
            self.loop.call_soon(call)
        elif not self.pipeline:
            self.flow.resume_reading()  # the end of a large body stops it, and who does not read sees nothing

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
        self._fed = data
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
        if not self._begins_again():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._begins_again():
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        """Only to a websocket, and as those begin: another method would wait in it without end."""
        return self.parser.get_method() == b"GET" and super()._should_upgrade()

    def _begins_again(self) -> bool:
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Begin again without the upgrade that was asked for, as a server may. uvicorn would lose the body.

        Clients in Java ask for HTTP/2 this way with each first request.
        """
        error = sys.exc_info()[1]
        if not isinstance(error, httptools.HttpParserUpgrade) or self.parser.get_method() == b"CONNECT":
            return self._give_up()
        rest = self._fed[error.args[0] :]
        lines = [b"%s: %s\r\n" % one for one in self.headers if one[0] not in (b"upgrade", b"connection")]
        head = b"%s %s HTTP/1.1\r\n%s\r\n" % (self.parser.get_method(), self.url, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

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
            self.send_400_response("The request's head is too large, did not arrive in time or asks for a tunnel.")
