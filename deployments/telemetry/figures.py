"""What a vLLM server says of itself at ``/metrics``, and what two readings say of the time between them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

#: Metric → the field of `Reading`; older names beside the new ones.
_VALUES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv",
    "vllm:gpu_cache_usage_perc": "kv",
    "vllm:prompt_tokens_total": "prompt",
    "vllm:generation_tokens_total": "generation",
    "vllm:num_preemptions_total": "preemptions",
}
_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds_bucket": "ttft",
    "vllm:inter_token_latency_seconds_bucket": "itl",
    "vllm:time_per_output_token_seconds_bucket": "itl",
}
_LINE = re.compile(r"(vllm:\w+)(?:\{(.*)\})?\s+(\S+)")
_BOUND = re.compile(r'(?:^|,)le="([^"]+)"')
#: Buckets of one histogram that are looked at.
_MOST_BUCKETS = 200
QUANTILES = {"50": 0.5, "95": 0.95}

Buckets = dict[float, float]  # upper bound → how many up to it, since the server started


@dataclass
class Reading:
    """One look at a server; sums over its engines, of the KV cache's use the mean. None: not said."""

    running: float | None = None
    waiting: float | None = None
    kv: float | None = None
    prompt: float | None = None
    generation: float | None = None
    preemptions: float | None = None
    ttft: Buckets = field(default_factory=dict)
    itl: Buckets = field(default_factory=dict)


def parse(text: str) -> Reading:
    """Read the exposition; lines that are not known or not understood are passed over."""
    reading, caches = Reading(), 0
    for line in text.splitlines():
        if not line.startswith("vllm:") or not (match := _LINE.match(line)):
            continue
        name, labels, value = match[1], match[2] or "", _float(match[3])
        if value is None:
            continue
        if name in _VALUES:
            known = _VALUES[name]
            caches += known == "kv"
            setattr(reading, known, (getattr(reading, known) or 0.0) + value)
        elif name in _HISTOGRAMS and (bound := _BOUND.search(labels)):
            _count(getattr(reading, _HISTOGRAMS[name]), bound[1], value)
    if reading.kv is not None:
        reading.kv /= caches
    return reading


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < inf else None


def _count(buckets: Buckets, bound: str, value: float) -> None:
    at = inf if bound == "+Inf" else _float(bound)
    if at is not None and (at in buckets or len(buckets) < _MOST_BUCKETS):
        buckets[at] = buckets.get(at, 0.0) + value


@dataclass(frozen=True)
class Interval:
    """What happened between two readings of one server."""

    seconds: float
    now: Reading
    prompt: float | None
    generation: float | None
    preemptions: float | None
    ttft: Buckets
    itl: Buckets


def between(before: Reading | None, now: Reading, seconds: float) -> Interval:
    """Of a server that was not looked at before, or was restarted meanwhile, only what it is now is known."""
    old = before or Reading()
    return Interval(
        seconds, now, _more(old.prompt, now.prompt), _more(old.generation, now.generation),
        _more(old.preemptions, now.preemptions), _later(old.ttft, now.ttft), _later(old.itl, now.itl),
    )  # fmt: skip


def _more(before: float | None, now: float | None) -> float | None:
    return now - before if now is not None and before is not None and now >= before else None


def _later(before: Buckets, now: Buckets) -> Buckets:
    if not before or any(now.get(bound, 0.0) < count for bound, count in before.items()):
        return {}
    return {bound: count - before.get(bound, 0.0) for bound, count in now.items()}


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The value that ``share`` of the observations lie below, linear within a bucket; None where there are none."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    low, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= share * total:
            if bound == inf:
                return low
            inside = buckets[bound] - below
            return low + (bound - low) * ((share * total - below) / inside if inside else 1.0)
        low, below = bound, buckets[bound]
    return low


def sample(intervals: Sequence[Interval], at: float) -> dict[str, Any]:
    """The figures of one server, or of several together, in the form that `nodes.telemetry` keeps.

    Requests and tokens are sums, the use of the KV cache is that of the fullest, times are of all their tokens.
    """
    return {
        "t": round(at, 1),
        "running": _sum(one.now.running for one in intervals),
        "waiting": _sum(one.now.waiting for one in intervals),
        "kv": max((one.now.kv for one in intervals if one.now.kv is not None), default=None),
        "prompt": _sum(_rate(one.prompt, one.seconds) for one in intervals),
        "generation": _sum(_rate(one.generation, one.seconds) for one in intervals),
        "preemptions": _sum(one.preemptions for one in intervals),
        **_times("ttft", [one.ttft for one in intervals]),
        **_times("itl", [one.itl for one in intervals]),
    }


def _rate(count: float | None, seconds: float) -> float | None:
    return None if count is None or seconds <= 0 else round(count / seconds, 1)


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 1) if known else None


def _times(name: str, several: Sequence[Buckets]) -> dict[str, float | None]:
    together: Buckets = {}
    for buckets in several:
        for bound, count in buckets.items():
            together[bound] = together.get(bound, 0.0) + count
    found = {label: quantile(together, share) for label, share in QUANTILES.items()}
    return {f"{name}{label}": None if value is None else round(value, 4) for label, value in found.items()}
