"""Pokes: "this row changed", from who moved it to who looks at it. They may be lost; pages re-read on reconnect."""

from __future__ import annotations

import logging
from typing import Any

from asgiref.sync import async_to_sync
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer
from redis.exceptions import RedisError

from controlplane import lifecycle

log = logging.getLogger(__name__)
GROUP = "pokes"
UNAUTHORIZED = 4401


def publish(row: lifecycle.Lifecycle) -> None:
    """Tell every open page that the row changed. A Redis that is away costs only the liveness."""
    layer = get_channel_layer()
    if layer is None:
        return
    try:
        async_to_sync(layer.group_send)(GROUP, {"type": "poke", "changed": row.subject})
    except (RedisError, OSError) as error:
        log.warning("poke of %s was lost: %s", row.subject, error)


class PokeConsumer(AsyncJsonWebsocketConsumer):  # type: ignore[misc]
    """``/ws/pokes``: one ``{"changed": "node:3"}`` for each change."""

    async def connect(self) -> None:
        await self.accept()
        if not self.scope["user"].is_authenticated:
            await self.close(UNAUTHORIZED)
            return
        await self.channel_layer.group_add(GROUP, self.channel_name)

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(GROUP, self.channel_name)

    async def poke(self, message: dict[str, Any]) -> None:
        await self.send_json({"changed": message["changed"]})
