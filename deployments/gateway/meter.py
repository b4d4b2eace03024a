"""What was used: counted in memory, written to the database in batches, never on the path of a request.

While the database is away the counts wait here; there is one for each key, model and day, so they do not
grow with the number of requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import NamedTuple

from django.db import Error, close_old_connections, transaction
from django.db.models import F
from django.utils import timezone

from deployments.models import ApiKey
from deployments.usage import Usage

log = logging.getLogger(__name__)

EVERY = 3.0  # seconds between two batches


class Line(NamedTuple):
    """Whose use of what is counted together."""

    day: date
    user_id: int
    key_id: int | None
    model: str


@dataclass
class Count:
    """Sums over requests; the names are those of `Usage`."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    ttft_count: int = 0
    ttft_ms: int = 0

    def add(self, other: Count) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


Counts = Mapping[Line, Count]
Writer = Callable[[Counts], None]


def write(counts: Counts) -> None:
    """Add counts to the database, all or none."""
    close_old_connections()
    try:
        with transaction.atomic():
            for line, count in counts.items():
                _add(line, vars(count))
            used = {line.key_id for line in counts if line.key_id is not None}
            ApiKey.objects.filter(pk__in=used).update(last_used_at=timezone.now())
    finally:
        close_old_connections()


def _add(line: Line, values: dict[str, int]) -> None:
    changed = Usage.objects.filter(**line._asdict()).update(
        **{name: F(name) + n for name, n in values.items()}
    )
    if not changed:
        Usage.objects.create(**line._asdict(), **values)


class Meter:
    """Counts requests; a background task writes them down every few seconds, and `close` what is left."""

    def __init__(self, write: Writer = write) -> None:
        self._write = write
        self._counts: dict[Line, Count] = {}
        self._thread = ThreadPoolExecutor(1, "gateway-meter")
        self._task = asyncio.ensure_future(self._keep_writing())

    def count(self, user_id: int, key_id: int | None, model: str, what: Count) -> None:
        line = Line(datetime.now(UTC).date(), user_id, key_id, model)
        self._counts.setdefault(line, Count()).add(what)

    async def close(self) -> None:
        self._task.cancel()
        await self._flush()
        self._thread.shutdown(wait=False)

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            await self._flush()

    async def _flush(self) -> None:
        batch, self._counts = self._counts, {}
        if not batch:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)
        except Error as error:
            log.warning(
                "The gateway could not write down usage; it keeps the counts and tries again: %s", error
            )
            for line, count in batch.items():
                self._counts.setdefault(line, Count()).add(count)
