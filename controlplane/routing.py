"""Websockets: which address is which consumer. A page of another origin gets none."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import WebsocketDenier
from django.urls import path

from controlplane.consumers import PokeConsumer
from controlplane.crowd import NotTooMany
from nodes.web.consumers import LogConsumer, TelemetryConsumer


class SameOrigin:
    """Lets a websocket through when the page that opens it came from the host it opens it to."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.denied = WebsocketDenier.as_asgi()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        origin = urlsplit(headers.get(b"origin", b"").decode("latin-1")).netloc
        same = origin == headers.get(b"host", b"").decode("latin-1")
        await (self.inner if same else self.denied)(scope, receive, send)


websockets = SameOrigin(
    AuthMiddlewareStack(
        NotTooMany(
            URLRouter(
                [
                    path("ws/pokes", PokeConsumer.as_asgi()),
                    path("ws/log/<uuid:job_id>", LogConsumer.as_asgi()),
                    path("ws/telemetry", TelemetryConsumer.as_asgi()),
                ]
            )
        )
    )
)
