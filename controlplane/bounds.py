"""How much a page's request may hold: counted before Django, which writes any body to disk before any view."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.utils import translation
from django.utils.translation import gettext as _

from deployments.gateway.errors import language_of

#: Bytes. A message of the playground may have 8 MB, every other form less.
MOST_SENT = 9 * 1024 * 1024

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]  # ASGI's; Django's handler is typed more narrowly than it is


def bounded(app: App) -> App:
    """The application, which never sees more than `MOST_SENT` bytes of a request: 413, announced or not."""

    async def within(scope: Scope, receive: Receive, send: Send) -> None:
        if _announced(scope) > MOST_SENT:
            await _refuse(scope, send)
            return
        sent = 0

        async def counted() -> Message:
            nonlocal sent
            message = await receive()
            sent += len(message.get("body", b""))
            # To the application it is as if the client had gone, so it lets go of what it has.
            return message if sent <= MOST_SENT else {"type": "http.disconnect"}

        await app(scope, counted, send)
        if sent > MOST_SENT:
            await _refuse(scope, send)

    return within


def _announced(scope: Scope) -> int:
    length = dict(scope["headers"]).get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


async def _refuse(scope: Scope, send: Send) -> None:
    with translation.override(language_of(scope["headers"])):
        text = _("This is larger than 9 MB, the most that a page may send. Send less at once.")
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
