"""A sample, what a node says of itself once a second: its shape, believed after `clean`, and means of several. Pure.

``{"t": seconds, "cpu": percent, "mem": [used, total], "disk": [used, total], "gpus": [[index, used, total, load,
temperature, power], …]}``; bytes, of GPUs MiB; None for what could not be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

Sample = dict[str, Any]
MOST_GPUS = 64
MOST_HOLDERS = 64
#: A node's clock that is off by more seconds than this is not followed.
CLOCK_TOLERANCE = 5.0
INDEX, USED, TOTAL, LOAD, TEMPERATURE, POWER = range(6)


def clean(said: Any, now: float) -> Sample | None:
    """What of a node's words is a sample; None when they are none. Nothing else of them goes any further."""
    if not isinstance(said, dict):
        return None
    clock = _number(said.get("t"))
    at = clock if clock is not None and abs(clock - now) <= CLOCK_TOLERANCE else round(now, 1)
    rows = said.get("gpus")
    gpus = [row for row in map(_gpu, rows[:MOST_GPUS]) if row] if isinstance(rows, list) else []
    return {"t": at, "cpu": _number(said.get("cpu")), "mem": _pair(said.get("mem")), "disk": _pair(said.get("disk")),
            "gpus": gpus}


def clean_holders(said: Any) -> list[list[Any]]:
    """``[index, pid, MiB, user, command, job]`` of each process that holds GPU memory."""
    rows = said if isinstance(said, list) else []
    whole = [row for row in rows[:MOST_HOLDERS] if isinstance(row, list) and len(row) == 6]
    return [[*(_number(one) for one in row[:3]), *(str(one)[:80] for one in row[3:])] for row in whole]


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and isfinite(value) else None


def _pair(value: Any) -> list[float | None]:
    return [_number(value[0]), _number(value[1])] if isinstance(value, list) and len(value) == 2 else [None, None]


def _gpu(row: Any) -> list[float | None] | None:
    if not isinstance(row, list) or len(row) != 6 or _number(row[0]) is None:
        return None
    return [_number(value) for value in row]


def mean(samples: Sequence[Mapping[str, Any]]) -> Sample:
    """The mean of several samples of one source, value by value, at the time of the first; GPUs by their index."""
    out: Sample = {"t": samples[0]["t"]}
    for name, first in samples[0].items():
        if name == "gpus":
            out[name] = _mean_gpus(row for sample in samples for row in sample["gpus"])
        elif isinstance(first, list):
            out[name] = _mean_columns([sample[name] for sample in samples])
        elif name != "t":
            out[name] = _mean_of(sample.get(name) for sample in samples)
    return out


def _mean_gpus(rows: Iterable[list[float | None]]) -> list[list[float | None]]:
    by_index: dict[float | None, list[list[float | None]]] = {}
    for row in rows:
        by_index.setdefault(row[INDEX], []).append(row)
    return [_mean_columns(by_index[index]) for index in sorted(by_index, key=lambda one: one or 0)]


def _mean_columns(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [_mean_of(column) for column in zip(*rows, strict=True)]


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    found = sum(known) / len(known)
    if found >= 1e6:
        return int(found)
    return round(found, 1 if found >= 10 else 2 if found >= 1 else 4)  # a share, or seconds between two tokens


def thinned(samples: Sequence[Mapping[str, Any]], step: float) -> list[Sample]:
    """One mean for each ``step`` seconds that have samples: what is missing stays missing."""
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        groups.setdefault(int(sample["t"] // step), []).append(sample)
    return [mean(group) for _, group in sorted(groups.items())]
