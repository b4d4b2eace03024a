"""Awaitables that are begun outside of a task: most of them are over at once, and cost no task and no waiting."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """An awaitable, run up to where it has to wait. ``over`` says that it never had to; then ``value`` is its.

    Otherwise await it, in a task and once, and it goes on.
    """

    def __init__(self, awaitable: Awaitable[T]) -> None:
        self._steps: Generator[Any, None, T] = awaitable.__await__()
        self.value: T
        try:
            self._waits_for = next(self._steps)
            self.over = False
        except StopIteration as end:
            self.value, self.over = end.value, True

    def __await__(self) -> Generator[Any, None, T]:
        try:
            yield self._waits_for
            return (yield from self._steps)
        finally:
            self._steps.close()
