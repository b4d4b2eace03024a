"""What a plan says: plain values, ready for a page or for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deployments.plan.wishes import Value


class Layout(NamedTuple):
    """Sizes of tensor and pipeline parallelism, and the number of independent copies."""

    tensor: int
    pipeline: int
    replicas: int

    def to_json(self) -> dict[str, int]:
        return self._asdict()


@dataclass(frozen=True)
class Placement:
    """One rank. ``rank`` counts through all copies; within copy ``replica`` it is rank % (tensor × pipeline).

    Sizes are bytes. ``layers`` are the first layer and the one after the last. ``gpu`` is None on a host
    without GPUs.
    """

    host: str
    gpu: int | None
    rank: int
    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int
    replica: int
    stage: int
    layers: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        names = ("host", "gpu", "rank", "weights_bytes", "kv_bytes")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Alternative:
    """A layout that was not chosen. ``kv_tokens`` and ``tokens_per_second`` are 0 where it is impossible."""

    layout: Layout
    why_not: str
    kv_tokens: int = 0
    tokens_per_second: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"layout": self.layout.to_json(), "why_not": self.why_not}


@dataclass(frozen=True)
class Nearest:
    """What would fit instead of an impossible wish: flags to change, or hardware to add, in one sentence.

    ``flags`` are vLLM's, with the values that fit; empty where only the hardware is in the way. ``gpus`` is
    how many the layout uses, which may be more than there are. ``drop`` names the wishes to give up.
    """

    sentence: str
    layout: Layout
    flags: Mapping[str, Value]
    gpus: int
    drop: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "sentence": self.sentence,
            "layout": self.layout.to_json(),
            "flags": dict(self.flags),
            "drop": list(self.drop),
            "gpus": self.gpus,
        }


@dataclass(frozen=True)
class Plan:
    """The outcome of planning.

    ``kv_tokens`` and ``max_concurrency`` are for one copy (the smallest), as vLLM's own log has them for one
    server; ``tokens_per_second`` is for all copies. ``environment`` goes to every rank. An impossible wish
    has no layout, but ``problems`` and mostly ``nearest``.
    """

    layout: Layout | None = None
    placement: tuple[Placement, ...] = ()
    kv_tokens: int = 0
    max_model_len: int = 0
    tokens_per_second: float = 0.0
    flags: Mapping[str, Value] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    problems: tuple[str, ...] = ()
    nearest: Nearest | None = None

    @property
    def feasible(self) -> bool:
        return self.layout is not None

    @property
    def max_concurrency(self) -> float:
        """Requests of the full length that one copy holds at once."""
        return round(self.kv_tokens / self.max_model_len, 2) if self.max_model_len else 0.0

    def to_json(self) -> dict[str, Any]:
        """The shape that ``manage.py plan --json`` prints."""
        shape: dict[str, Any] = {
            "feasible": self.feasible,
            "layout": self.layout.to_json() if self.layout else None,
            "placement": [place.to_json() for place in self.placement],
            "kv_tokens": self.kv_tokens,
            "max_concurrency": self.max_concurrency,
            "flags": dict(self.flags),
            "reasons": list(self.reasons),
            "alternatives": [alternative.to_json() for alternative in self.alternatives],
            "problems": list(self.problems),
        }
        if self.environment:
            shape["environment"] = dict(self.environment)
        if not self.feasible:
            shape["nearest"] = self.nearest.to_json() if self.nearest else None
        return shape
