"""When alerts are looked after: a tick of watch asks for it, a worker does it."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from django.dispatch import receiver

from controlplane import streams
from deployments.alerts import delivery, look
from nodes import signals, tasks

EVERY = 5  # seconds


@receiver(signals.tick)
def look_soon(sender: object, **_kwargs: Any) -> None:
    if streams.client().set("alerts:asked", 1, nx=True, ex=EVERY):
        tasks.send(look_at_everything)


@shared_task
def look_at_everything() -> None:
    """Note what begins and what is over, then send what is due."""
    if not streams.client().set("alerts:looking", 1, nx=True, ex=60):
        return
    try:
        look.look()
    finally:
        streams.client().delete("alerts:looking")
    delivery.send_due()
    if streams.client().set("alerts:forgot", 1, nx=True, ex=3600):
        look.forget()
