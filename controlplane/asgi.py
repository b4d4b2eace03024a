"""The ASGI application: the gateway at /v1 beside Django, pages and websockets behind it.

The gateway is dispatched before anything of Django: no middleware stands in a prompt's way.
"""

import gc
import os
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
django = get_asgi_application()

from controlplane.bounds import bounded  # noqa: E402  (needs the applications loaded)
from controlplane.routing import websockets  # noqa: E402
from deployments.gateway import app as gateway  # noqa: E402

pages = bounded(django)


async def application(scope: Any, receive: Any, send: Any) -> None:
    match scope["type"]:
        case "http" if scope["path"].startswith("/v1/") or scope["path"] == "/v1":
            await gateway.gateway(scope, receive, send)
        case "http":
            await pages(scope, receive, send)
        case "websocket" if scope["path"].startswith("/v1/"):
            await gateway.gateway(scope, receive, send)
        case "websocket":
            await websockets(scope, receive, send)
        case "lifespan":
            await _lifespan(receive, send)


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            gc.freeze()  # what was imported stays: walking through it took 0.1 s, now and then, of somebody's page
            await send({"type": "lifespan.startup.complete"})
        else:
            await gateway.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
