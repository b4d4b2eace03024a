"""The way to the model servers: a small HTTP/1.1 client for streams, on asyncio's protocols and httptools.

Libraries wrap each piece of a stream in Python several times over; with 512 streams that costs more than
the work itself. What is kept here: pooled connections, last in first out; time-outs to connect, to the
first byte and between bytes, none on the whole; reading stops while the client is slow; a request is sent
again only when a pooled connection proves stale before any byte of an answer.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import httptools

from deployments.gateway.begun import Begun

HIGH_WATER = 256 * 1024  # bytes buffered before the upstream is paused
HEAD_LIMIT = 64 * 1024  # bytes of an answer's head
SWEEP = 1.0  # seconds between looks at time-outs: exact enough for limits of minutes, and free for each chunk


#: Takes a piece of an answer. Gives something to await when it has to wait for the client.
Sink = Callable[[bytes], Awaitable[None] | None]


class Origin(NamedTuple):
    """Where a model server listens."""

    host: str
    port: int


class UpstreamError(Exception):
    """The model server did not answer as it should; the text says how, for the log."""


class ConnectFailed(UpstreamError):
    """No connection: nothing was sent."""


class TimedOut(UpstreamError):
    """Silence beyond the limit."""


class Broken(UpstreamError):
    """The connection ended, or what came was not HTTP."""


class Stale(Broken):
    """A kept connection ended before any byte of an answer: the request can be sent again."""


@dataclass(frozen=True)
class Limits:
    """Seconds: to connect, to the first byte of an answer, between bytes, and to keep an idle connection.

    vLLM closes idle connections after 5 s, so ours go before that.
    """

    connect: float = 5.0
    first_byte: float = 600.0
    idle: float = 300.0
    keep: float = 4.0


class Exchange:
    """One request and its answer.

    ``status`` and ``headers`` (names in lower case) are known once `Pool.request` returns; then `read`
    until it returns nothing. To leave early, `abort`: it closes the connection at once.
    """

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self._connection = connection
        self._limits = limits
        self._chunks: list[bytes] = []
        self.on_body = self._chunks.append  # httptools calls it for each piece: nothing is cheaper
        self._parser = httptools.HttpResponseParser(self)  # takes the callbacks that exist now
        self._size = 0  # bytes that came since the last were taken
        self._headed = False
        self._framed = False  # the head says where the body ends; else it ends with the connection
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._pending: Begun[None] | None = None
        self._heard = False  # since the last `check`: looking at the clock for each chunk would cost more
        self._deadline = connection.loop.time() + limits.first_byte

    # What the one who asked calls.

    async def head(self) -> None:
        """Wait for the status and headers."""
        while not self._headed:
            await self._more()

    async def read(self) -> bytes:
        """What has come since the last call; nothing only at the end. Raises `UpstreamError`."""
        while not self._chunks:
            if self.complete:
                return b""
            await self._more()
        return self._take()

    async def pump(self, sink: Sink) -> None:
        """Give ``sink`` all that comes, in order, until the end. Raises `UpstreamError`.

        It is called right where bytes arrive, so that no task has to wake for each piece; only when it has to
        wait, because the client is slow, it is awaited here.
        """
        while not self.at_end:
            if self._pending is not None:
                pending, self._pending = self._pending, None
                await pending
            elif self._chunks:
                if (wait := sink(self._take())) is not None:
                    await wait
            else:
                self._sink = sink
                await self._more()
                self._sink = None

    @property
    def at_end(self) -> bool:
        """Whether everything has been read."""
        return self.complete and not self._chunks and self._pending is None

    def abort(self) -> None:
        """Give up what is left. Does nothing to an exchange that is complete."""
        if not self.complete:
            self._connection.abort()

    def _take(self) -> bytes:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        if self._size > HIGH_WATER and not self.complete:
            self._connection.resume()
        self._size = 0
        return data

    def _push(self, sink: Sink) -> None:
        """Call the sink outside of a task; what it waits for, if anything, is left to `pump`."""
        if (wait := sink(self._take())) is None:
            return
        sending = Begun(wait)
        if not sending.over:
            self._sink, self._pending = None, sending
            self._wake()

    def _more(self) -> asyncio.Future[None]:
        """A future for the next thing that happens."""
        if self._error:
            raise self._error
        self._waiter = self._connection.loop.create_future()
        return self._waiter

    # What the connection calls.

    def feed(self, data: bytes) -> None:
        self._heard = True
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(Broken("it sent something that is not HTTP"))
        if not self._headed and self._size > HEAD_LIMIT:
            self.fail(Broken("the head of its answer is too large"))
        if not self._chunks:
            return
        if self._sink is not None:
            self._push(self._sink)
        else:
            self._wake()
        if self._size > HIGH_WATER and not self.complete:
            self._connection.pause()

    def ended(self, error: Exception | None) -> None:
        """The connection is gone. An answer without a length ends this way in good order."""
        if self._headed and not self._framed and error is None:
            self._finish()
        elif self._connection.reused and self._size == 0:
            self.fail(Stale("it had closed a kept connection"))
        else:
            self.fail(Broken("it closed the connection in the middle of an answer"))

    def fail(self, error: UpstreamError) -> None:
        if not self.complete and self._error is None:
            self._error = error
            self._wake()
        self._connection.abort()

    def check(self, now: float) -> None:
        """Fail when a reader has waited too long; a client that does not read is no fault of the server."""
        if self._heard or self._waiter is None:
            self._heard = False
            self._deadline = now + self._limits.idle
        elif now > self._deadline:
            self.fail(TimedOut("it has been silent for too long"))

    @property
    def reusable(self) -> bool:
        return self._framed and self._parser.should_keep_alive()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _finish(self) -> None:
        self.complete = True
        self._wake()
        self._connection.release(self)

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("a second answer, which belongs to nobody")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        if name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower()):
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the real one follows
            self.headers = []
            return
        self.status = status
        self._headed = True
        self._framed = self._framed or status in (204, 304)
        self._wake()

    def on_message_complete(self) -> None:
        if self._headed and self._framed:
            self._finish()


class Connection(asyncio.Protocol):
    """One connection to a model server; one exchange at a time."""

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self.loop = asyncio.get_running_loop()
        self.origin = origin
        self.reused = False
        self.closed = False
        self.idle_since = 0.0
        self._pool = pool
        self._transport: asyncio.Transport
        self._exchange: Exchange | None = None

    def start(self, request: bytes, limits: Limits) -> Exchange:
        self._exchange = Exchange(self, limits)
        self._transport.write(request)
        return self._exchange

    def release(self, exchange: Exchange) -> None:
        """The answer is complete: keep the connection for the next, if both sides may."""
        self._exchange = None
        if self.closed or not exchange.reusable:
            self.abort()
        else:
            self._transport.resume_reading()
            self._pool.keep(self)

    def abort(self) -> None:
        self.closed = True
        self._transport.abort()

    def pause(self) -> None:
        self._transport.pause_reading()

    def resume(self) -> None:
        self._transport.resume_reading()

    def check(self, now: float) -> None:
        if self._exchange is not None:
            self._exchange.check(now)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:
            self.abort()  # nothing was asked
        else:
            self._exchange.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._pool.connections.discard(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.ended(error)


class Pool:
    """Connections to all model servers, for one event loop. `close` ends them."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.connections: set[Connection] = set()
        self._idle: defaultdict[Origin, list[Connection]] = defaultdict(list)
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.create_task(self._sweep())

    async def request(self, origin: Origin, request: bytes) -> Exchange:
        """Send a request (head and body) and wait for the head of the answer. Raises `UpstreamError`."""
        while True:
            connection = self._take(origin) or await self._connect(origin)
            exchange = connection.start(request, self.limits)
            try:
                await exchange.head()
                return exchange
            except Stale:
                continue  # there are only so many kept ones, and a new connection is never stale
            except BaseException:
                exchange.abort()
                raise

    def keep(self, connection: Connection) -> None:
        connection.idle_since = self._loop.time()
        connection.reused = True
        self._idle[connection.origin].append(connection)

    def close(self) -> None:
        self._closed = True
        self._sweeper.cancel()
        for connection in list(self.connections):
            connection.abort()

    def _take(self, origin: Origin) -> Connection | None:
        kept = self._idle[origin]
        while kept:
            connection = kept.pop()
            if not connection.closed and self._loop.time() - connection.idle_since < self.limits.keep:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin) -> Connection:
        if self._closed:
            raise ConnectFailed("the gateway is stopping")
        try:
            async with asyncio.timeout(self.limits.connect):
                _, connection = await self._loop.create_connection(lambda: Connection(self, origin), *origin)
        except TimeoutError as error:
            raise ConnectFailed("it does not answer") from error
        except OSError as error:
            raise ConnectFailed(f"it cannot be reached ({error.strerror or error})") from error
        return connection

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            now = self._loop.time()
            for connection in list(self.connections):
                connection.check(now)
            for connection in self._expired(now):
                connection.abort()

    def _expired(self, now: float) -> Iterator[Connection]:
        """Takes the connections that were idle for too long out of the pool; forgets origins without any."""
        for origin, kept in list(self._idle.items()):
            fresh = [one for one in kept if not one.closed and now - one.idle_since < self.limits.keep]
            yield from (one for one in kept if one not in fresh)
            if fresh:
                self._idle[origin] = fresh
            else:
                del self._idle[origin]
