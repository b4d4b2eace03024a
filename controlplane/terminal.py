"""A calm list of steps with times, for a person at a terminal and for a log file alike."""

from __future__ import annotations

import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_BAR, _LEAST_BAR = 20, 4  # characters
_COLUMN = 52  # where the times begin


class Terminal:
    """Writes finished steps as lines; at a real terminal the step at work is one line that is drawn again.

    In a file or a pipe it is a new line whenever what the step does changes. Safe from any thread.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._lock = threading.Lock()
        self._shown = ""  # what was drawn last of the step at work

    def line(self, text: str = "") -> None:
        """A line of its own, above the step at work."""
        with self._lock:
            shown = self._shown
            self._write(f"{text}\n")
            if shown and self._live:
                self._draw(shown)

    def done(self, title: str, seconds: float, mark: str = "✓") -> None:
        """A step that is over."""
        self.line(f"  {mark} {title}{' ' * (_COLUMN - _width(title))} {seconds:7.1f} s")

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """What the ``with`` block does, as one step."""
        began, mark = time.monotonic(), "✗"
        if self._live:
            self.working(title)
        try:
            yield
            mark = "✓"
        finally:
            self.rest()
            self.done(title, time.monotonic() - began, mark)

    def working(self, title: str, detail: str = "", percent: int = 0, seconds: float = 0) -> None:
        """What goes on now; call it as often as there is news."""
        text = f"  · {title}" + (f": {detail}" if detail else "")
        if self._live:
            text = _line(text, percent, seconds, shutil.get_terminal_size().columns - 1)
        with self._lock:
            if text != self._shown:
                self._draw(text)

    def rest(self) -> None:
        """Nothing goes on."""
        with self._lock:
            if self._live:
                self._write("")
            self._shown = ""

    def _draw(self, text: str) -> None:
        if self._live:
            self._write(text)
        else:
            self._write(f"{text}\n")
        self._shown = text

    def _write(self, text: str) -> None:
        self._out.write(f"\r\033[K{text}" if self._live else text)
        self._out.flush()


def _width(text: str) -> int:
    """Columns of a terminal that the text takes; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _line(text: str, percent: int, seconds: float, columns: int) -> str:
    """One line of at most ``columns``: the bar is shortened first, then the text; percent and seconds stay."""
    figures = (f"  {percent} %" if percent else "") + (f"  {seconds:.0f} s" if seconds else "")
    room = columns - _width(figures)
    bar = _bar(percent, min(_BAR, room - _width(text) - 2)) if percent else ""
    return f"{_cut(text, room)}{bar}{figures}"


def _cut(text: str, columns: int) -> str:
    if _width(text) <= columns:
        return text
    while text and _width(text) >= columns:
        text = text[:-1]
    return f"{text}…"


def _bar(percent: int, length: int) -> str:
    if length < _LEAST_BAR:
        return ""
    filled = round(length * min(percent, 100) / 100)
    return f"  {'━' * filled}{'╌' * (length - filled)}"


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    """Ask again and again until the condition holds (True) or the time is over (False)."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
