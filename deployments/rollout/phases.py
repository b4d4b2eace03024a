"""How far a start of vLLM is, read from its log as it comes: phase, percent and what vLLM measured. Pure.

The percentages are a convention: what a phase's lines mean for the whole of a start. Lines are matched by
their text, never by the ``file.py:LINE`` that vLLM prints before it, which changes with every release.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from deployments.diagnosis.lines import RANK, parse, plain

LONGEST_LINE = 16_384  # characters that are kept of a line whose end has not come yet
OPENING = 95  # percent; the engine is up, and its endpoint opens
STARTED = 99  # percent; that it generates is only proven by a prompt, which makes it 100

PHASES: Mapping[str, Promise] = {
    "starting": _("Starting the server"),
    "configuration": _("Reading the model's configuration"),
    "engine": _("Starting the engine"),
    "ray": _("Waiting for Ray to place the workers"),
    "workers": _("Connecting the workers"),
    "weights": _("Loading the weights"),
    "compiling": _("Compiling the model"),
    "memory": _("Measuring the memory for the KV cache"),
    "warm-up": _("Warming up"),
    "graphs": _("Capturing CUDA graphs"),
    "listening": _("Opening the endpoint"),
    "started": _("The server has started"),
}


@dataclass(frozen=True)
class Progress:
    """Where a start is. ``phase`` is a key of `PHASES`, "" before anything is known.

    ``measured`` holds vLLM's own figures: version, architecture, max_model_len, world_size, shards ("3/8"),
    weights_gib (of the fullest worker), weights_seconds, compile_seconds, graphs_gib, kv_gib (of the worker
    with the least), kv_tokens, max_concurrency (requests of max_model_len), init_seconds; workers, by
    rank: the address of each one's host ("" for the server's own) and its process there; and each, by "address/pid":
    its own weights_gib and kv_gib.
    """

    phase: str = ""
    percent: int = 0
    measured: Mapping[str, Any] = field(default_factory=dict)


class Sign(NamedTuple):
    """A text that shows a phase. With ``until``, its first group is the percent done in between."""

    phase: str
    percent: int
    pattern: re.Pattern[str]
    until: int = 0


def _sign(phase: str, percent: int, pattern: str, until: int = 0) -> Sign:
    return Sign(phase, percent, re.compile(pattern), until)


SIGNS = (
    _sign("starting", 3, r"version \d+\.\d+|non-default args:"),
    _sign("configuration", 6, r"Resolved architecture: "),
    _sign("configuration", 7, r"Using max model len \d"),
    _sign("engine", 10, r"Initializing a V1 LLM engine"),
    _sign("ray", 12, r"Connecting to existing Ray cluster|Connected to Ray cluster|Started a local Ray"),
    _sign("ray", 13, r"No current placement group found|Waiting for creating a placement group"),
    _sign("workers", 18, r"world_size=\d+ rank=\d+"),
    _sign("workers", 20, r"rank \d+ in world size \d+ is assigned as"),
    _sign("weights", 22, r"Starting to load model|Loading model from scratch"),
    _sign("weights", 22, r"Prefetching checkpoint files:\s+(\d+)%", until=40),
    _sign("weights", 22, r"Loading \w+ checkpoint shards:\s+(\d+)%", until=60),
    _sign("weights", 60, r"Loading weights took|Model loading took"),
    _sign("compiling", 62, r"Using cache directory: \S*torch_compile_cache"),
    _sign("compiling", 65, r"Dynamo bytecode transform time"),
    _sign("compiling", 70, r"Compiling a graph for compile range|Directly load the compiled graph"),
    _sign("compiling", 75, r"torch\.compile\b.* took "),
    _sign("memory", 76, r"Estimated CUDA graph memory"),
    _sign("memory", 78, r"Available KV cache memory"),
    _sign("memory", 80, r"(?:GPU|CPU) KV cache size"),
    _sign("warm-up", 81, r"[Ww]arming up model|Autotuning process starts"),
    _sign("graphs", 82, r"Capturing CUDA graph[^:]*:\s+(\d+)%", until=93),
    _sign("graphs", 93, r"Graph capturing finished"),
    _sign("listening", OPENING, r"init engine \(profile, create kv cache, warmup model\) took"),
    _sign("listening", 97, r"Supported tasks:|Starting vLLM server on"),
    _sign("started", STARTED, r"Application startup complete"),
)


class Measure(NamedTuple):
    """A figure in a line: its name, where it is (first group), its type, and whose counts of several."""

    name: str
    pattern: re.Pattern[str]
    kind: Callable[[str], Any] = str
    choose: Callable[[Any, Any], Any] = lambda old, new: new


def _count(text: str) -> int:
    return int(text.replace(",", ""))


MEASURES = (
    Measure("version", re.compile(r"(?:  version |LLM engine \(v)(\d+\.\d+[\w.+]*)")),
    Measure("architecture", re.compile(r"Resolved architecture: (\S+)")),
    Measure("max_model_len", re.compile(r"Using max model len ([\d,]+)"), _count),
    Measure("world_size", re.compile(r"world_size=(\d+) rank="), int),
    Measure("shards", re.compile(r"Loading \w+ checkpoint shards:.*\| (\d+/\d+)")),
    Measure("weights_gib", re.compile(r"Model loading took (\d+\.?\d*) GiB"), float, max),
    Measure("weights_seconds", re.compile(r"Loading weights took (\d+\.?\d*) s"), float, max),
    Measure("compile_seconds", re.compile(r"torch\.compile\b.* took (\d+\.?\d*) s"), float, max),
    Measure(
        "graphs_gib", re.compile(r"Graph capturing finished in \d+ secs, took (\d+\.?\d*) GiB"), float, max
    ),
    Measure("kv_gib", re.compile(r"Available KV cache memory: (-?\d+\.?\d*) GiB"), float, min),
    Measure("kv_gib", re.compile(r"Explicitly set \((\d+\.?\d*)/.* GiB for KV cache"), float, min),
    Measure("kv_tokens", re.compile(r"KV cache size: ([\d,]+) tokens"), _count),
    Measure("max_concurrency", re.compile(r"Maximum concurrency for .* per request: (\d+\.?\d*)x"), float),
    Measure("init_seconds", re.compile(r"init engine .* took (\d+\.?\d*) s"), float),
)


#: Those that every worker has of its own.
OWN = frozenset({"weights_gib", "kv_gib"})


class PhaseReader:
    """Reads a log in pieces that may split lines and characters.

    It never goes back: workers print at different speeds, so an earlier phase's line after a later one's
    changes nothing but the figures. After a restart of the reader, give it the log from its beginning again,
    or the `Progress` it had reached and what came after.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def feed(self, data: bytes) -> Progress:
        """What is known after these bytes too."""
        if self.progress.percent < STARTED:
            *lines, rest = (self._rest + self._decoder.decode(data)).replace("\r", "\n").split("\n")
            self._rest = rest[-LONGEST_LINE:]
            for line in lines:
                self.progress = advanced(self.progress, line)
        return self.progress


def advanced(progress: Progress, line: str) -> Progress:
    """The progress after one more line of the log."""
    read = parse(plain(line))
    text = read.text
    values = [(measure.name, _value(measure, text, progress)) for measure in MEASURES]
    measured = {name: value for name, value in values if value is not None}
    if rank := RANK.search(text):
        workers = progress.measured.get("workers", {})
        measured["workers"] = {**workers, rank[1] or rank[2]: [read.host, int(read.pid or 0)]}
    if own := _own(text):
        each = progress.measured.get("each", {})
        worker = f"{read.host}/{read.pid or 0}"
        measured["each"] = {**each, worker: {**each.get(worker, {}), **own}}
    if measured:
        progress = replace(progress, measured={**progress.measured, **measured})
    for sign in SIGNS:
        if (percent := _percent(sign, text)) > progress.percent:
            progress = replace(progress, phase=sign.phase, percent=percent)
    return progress


def _own(text: str) -> dict[str, float]:
    """What a worker says of itself, whatever the others say."""
    found = ((measure, measure.pattern.search(text)) for measure in MEASURES if measure.name in OWN)
    return {measure.name: float(match[1]) for measure, match in found if match}


def _value(measure: Measure, text: str, progress: Progress) -> Any:
    match = measure.pattern.search(text)
    if not match:
        return None
    value = measure.kind(match[1])
    return measure.choose(progress.measured.get(measure.name, value), value)


def _percent(sign: Sign, text: str) -> int:
    match = sign.pattern.search(text)
    if not match:
        return 0
    return sign.percent + ((sign.until - sign.percent) * int(match[1]) // 100 if sign.until else 0)
