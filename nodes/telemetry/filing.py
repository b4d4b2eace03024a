"""From watch's threads to Redis: samples of all nodes gathered and written together, a few times a second.

One round trip for a hundred nodes instead of a hundred: that, not the samples, was most of what watch cost.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from typing import Any

from controlplane import streams
from nodes.telemetry import sample as samples
from nodes.telemetry import store

log = logging.getLogger(__name__)
EVERY = 0.25  # seconds
#: What waits while Redis is away; beyond it the oldest are dropped.
MOST_WAITING = 20_000


class Filing(threading.Thread):
    """Takes what nodes said from any thread, and writes it down until `stop`."""

    def __init__(self) -> None:
        super().__init__(name="filing", daemon=True)
        self._waiting: deque[store.Entry] = deque(maxlen=MOST_WAITING)
        self._stopping = threading.Event()

    def add_sample(self, node: int, said: Any) -> None:
        sample = samples.clean(said, time.time())
        if sample is not None:
            self._waiting.append(store.Entry(node, "s", _short(sample)))

    def add_holders(self, node: int, said: Any) -> None:
        self._waiting.append(store.Entry(node, "w", _short(samples.clean_holders(said))))

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.wait(EVERY):
            self.flush()
        self.flush()

    def flush(self) -> None:
        """Write down what has come. What cannot be written waits for the next time."""
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not batch:
            return
        try:
            store.add(batch)
        except (streams.RedisError, OSError) as error:
            log.warning("%d samples wait for Redis: %s", len(batch), error)
            self._waiting.extendleft(reversed(batch[-MOST_WAITING:]))


def _short(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
