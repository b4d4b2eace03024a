"""Every layout worth a look, in order: expected tokens a second first, then room for context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from django.utils.translation import gettext as _

from deployments.plan.hosts import HostSpec
from deployments.plan.layouts import (
    Copies,
    Copy,
    Group,
    Seat,
    groups_of,
    hops,
    levels,
    pipeline_sizes,
    runs_of,
    seats_of,
    tensor_problem,
)
from deployments.plan.memory import Memory, default_batched_tokens
from deployments.plan.model import ModelConfig
from deployments.plan.speed import Network, Shape, tokens_per_second, workload
from deployments.plan.wishes import Wishes
from deployments.plan.words import count, gib

#: Speeds this near to the best count as equal, since the estimate is not better than that; then room decides.
NEAR = 0.8
ROOMY = 0.75
#: Inside a host tensor parallelism comes before a pipeline while it keeps this share of the pipeline's speed.
TENSOR_FIRST = 0.75
#: As fast as NVLink: 150 GB/s one way, its slowest form in use. Only then may tensor parallelism leave a host
#: unasked.
NVLINK_GBPS = 1200
LEAST_CONTEXT = 2048  # tokens that must fit where no length was wished
SEQUENCES_PER_COPY = 4  # more copies than this allows would each idle
_ENOUGH = 8  # longer pipelines are looked at only while nothing fits
_LARGE_TENSORS = (10, 12, 16, 32)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layout that fits, with what it is expected to give."""

    tensor: int
    pipeline: int
    utilization: float
    target: int  # tokens of the longest request that is wanted
    memory: Memory
    copies: tuple[Copy, ...]
    speed: float  # answer tokens a second, all copies together

    @property
    def size(self) -> tuple[int, int, int]:
        return self.tensor, self.pipeline, len(self.copies)

    @cached_property
    def kv_tokens(self) -> int:
        """Tokens that the smallest copy's cache holds."""
        return min(copy.kv_tokens for copy in self.copies)

    @cached_property
    def room(self) -> int:
        """Tokens that all copies' caches hold together."""
        return sum(copy.kv_tokens for copy in self.copies)

    @cached_property
    def worth(self) -> float:
        """The room for ranking: worth less where a request cannot be as long as wanted."""
        return self.room * min(1.0, self.kv_tokens / self.target)

    @cached_property
    def tensor_crosses(self) -> bool:
        return any(group.crosses for copy in self.copies for group in copy.groups)

    @cached_property
    def crosses(self) -> bool:
        """Whether a copy needs the network between hosts to answer."""
        return self.tensor_crosses or any(any(hops(copy.groups)) for copy in self.copies)

    @cached_property
    def stacked(self) -> bool:
        """Whether a pipeline hands over inside a host although its GPUs are alike."""
        groups = self.copies[0].groups
        return len({group.kind for group in groups}) == 1 and not all(hops(groups)) and self.pipeline > 1

    @cached_property
    def seats(self) -> list[Seat]:
        return [seat for copy in self.copies for group in copy.groups for seat in group.seats]


@dataclass(frozen=True)
class Refusal:
    """A layout that is impossible, why, and how many tokens it would have room for."""

    tensor: int
    pipeline: int
    why: str
    kv_tokens: int = 0


@dataclass(frozen=True)
class Found:
    """The outcome of a search, best first."""

    candidates: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]


Level = tuple[float, list[list[Group]], Copies]


class Search:
    """One search over the GPUs of ``hosts``. A wished layout only adds sizes to look at; see `matches`."""

    def __init__(self, model: ModelConfig, hosts: Sequence[HostSpec], wishes: Wishes, network: Network) -> None:
        self.model, self.wishes, self.network = model, wishes, network
        self.rows = seats_of(hosts)
        self.seats = [seat for row in self.rows for seat in row]
        self.total = len(self.seats)
        self.longest = model.longest or LEAST_CONTEXT
        self.target = wishes.max_model_len or self.longest
        self.needed = wishes.max_model_len or min(self.longest, LEAST_CONTEXT)
        self._candidates: list[Candidate] = []
        self._refusals: list[Refusal] = []
        self._memories: dict[tuple[int, int], Memory] = {}
        self._known_levels: dict[tuple[int, int], list[Level]] = {}

    def run(self) -> Found:
        for tensor in self._tensors():
            why = tensor_problem(self.model, tensor, self.wishes)
            if why:
                self._refusals.append(Refusal(tensor, 1, why))
            elif tensor <= self.total:
                self._sizes(tensor)
        return Found(tuple(self._ranked()), tuple(self._refusals))

    def _tensors(self) -> list[int]:
        widest = max(map(len, self.rows), default=0)
        sizes = set(range(1, min(8, self.total) + 1))
        sizes |= {size for size in _LARGE_TENSORS if size <= min(self.total, 2 * widest)}
        return sorted(sizes | ({self.wishes.tensor} if self.wishes.tensor else set()))

    def _sizes(self, tensor: int) -> None:
        """All pipelines of one tensor size, each at its best level of memory use, or why there is none."""
        limit = min(len(self.model.layers), self.total // tensor)
        sizes = pipeline_sizes(limit)
        fitting = 0
        wished = self.wishes.pipeline
        for pipeline in sorted({*sizes, *([wished] if wished and wished <= limit else [])}):
            # a pipeline longer than needed only waits longer
            if pipeline <= _ENOUGH or not fitting or pipeline == wished:
                fitting += self._size(tensor, pipeline)

    def _size(self, tensor: int, pipeline: int) -> bool:
        """Looks at one layout at each level of memory use; whether it fits at any."""
        tried = [outcome for steps in self._levels(tensor, pipeline) for outcome in self._at(pipeline, *steps)]
        found = [outcome for outcome in tried if isinstance(outcome, Candidate)]
        refused = [outcome for outcome in tried if isinstance(outcome, Refusal)]
        self._candidates += found
        if refused and not found:
            self._refusals.append(max(refused, key=lambda r: r.kv_tokens))
        return bool(found)

    def _levels(self, tensor: int, pipeline: int) -> list[Level]:
        """GPUs grouped by ``tensor`` for each value of gpu_memory_utilization; the same for all real pipelines."""
        workers = min(2, tensor * pipeline)
        if (tensor, workers) not in self._known_levels:
            self._known_levels[tensor, workers] = [
                (level, rows, Copies(self._memory(tensor, rows), self.needed))
                for level in levels(self.seats, workers, self.wishes)
                for rows in [groups_of(self.rows, tensor, level, workers)]
            ]
        return self._known_levels[tensor, workers]

    def _at(
        self, pipeline: int, level: float, rows: Sequence[Sequence[Group]], cuts: Copies
    ) -> list[Candidate | Refusal]:
        memory, tensor = cuts.memory, cuts.memory.tensor
        if sum(map(len, rows)) < pipeline:
            return [Refusal(tensor, pipeline, self._too_few(tensor * pipeline, level))]
        copies = cuts.feasible(rows, pipeline, self._most_copies())
        if len(copies) >= (self.wishes.replicas or 1):
            return [
                Candidate(tensor, pipeline, level, self.target, memory, chosen, self._speed(memory, chosen))
                for chosen in self._choices(copies)
            ]
        if copies:
            why = _("Only %(count)d copies fit on GPUs of their own.") % {"count": len(copies)}
            return [Refusal(tensor, pipeline, why, copies[0].kv_tokens)]
        tightest = cuts.copy(next(runs_of(rows, pipeline)))
        return [Refusal(tensor, pipeline, self._too_small(tightest), tightest.kv_tokens)]

    def _choices(self, copies: Sequence[Copy]) -> list[tuple[Copy, ...]]:
        """All copies; and without the poorer ones, whose small cache would shorten everybody's context."""
        ordered = sorted(copies, key=lambda copy: -copy.kv_tokens)
        if self.wishes.replicas:
            return [tuple(ordered[: self.wishes.replicas])]
        richest = [copy for copy in ordered if copy.kv_tokens == ordered[0].kv_tokens]
        return [tuple(ordered)] if len(richest) == len(ordered) else [tuple(ordered), tuple(richest)]

    def _memory(self, tensor: int, rows: Sequence[Sequence[Group]]) -> Memory:
        gpus = {seat.gpu for row in rows for group in row for seat in group.seats}
        batched = self.wishes.batched_tokens or default_batched_tokens(gpus)
        if (tensor, batched) not in self._memories:
            memory = Memory(self.model, tensor, self.wishes, batched, self.wishes.sequences)
            self._memories[tensor, batched] = memory
        return self._memories[tensor, batched]

    def _most_copies(self) -> int:
        return self.wishes.replicas or -(-self.wishes.sequences // SEQUENCES_PER_COPY)

    def _speed(self, memory: Memory, copies: Sequence[Copy]) -> float:
        """Tokens a second of all copies, which share the wished requests. Alike copies are computed once."""
        prompt, answer = workload(self.target)
        known: dict[tuple[object, ...], float] = {}
        total = 0.0
        for copy in copies:
            batch = min(self.wishes.sequences / len(copies), copy.kv_tokens / (prompt + answer))
            crossing = hops(copy.groups)
            key = (crossing, *(group.kind for group in copy.groups))
            if key not in known:
                shape = Shape(
                    tuple(group.speed for group in copy.groups),
                    tuple(group.crosses for group in copy.groups),
                    crossing,
                )
                known[key] = tokens_per_second(memory, copy.stages, shape, self.network, batch, prompt, answer)
            total += known[key]
        return total

    def _too_few(self, workers: int, level: float) -> str:
        free = sum(seat.gpu.most_utilization(workers) >= level for seat in self.seats)
        if free == self.total:
            return _("Needs %(needed)d GPUs; there are %(total)d.") % {"needed": workers, "total": self.total}
        return _(
            "A gpu-memory-utilization of %(share).2f needs that share of each GPU free. Other processes"
            " leave it on"
            " %(free)d of %(total)d GPUs; %(needed)d are needed."
        ) % {"needed": workers, "share": level, "free": free, "total": self.total}

    def _too_small(self, copy: Copy) -> str:
        """Which stage does not fit, in numbers."""
        worst = min(range(len(copy.stages)), key=lambda j: copy.stages[j].kv_room)
        stage, group = copy.stages[worst], copy.groups[worst]
        if stage.kv_room > 0:
            return _("Leaves room for %(tokens)s tokens of context; %(needed)s are needed.") % {
                "tokens": count(copy.kv_tokens),
                "needed": count(self.needed),
            }
        return _(
            "%(weights)s of weights and %(overhead)s of working memory do not fit in the %(room)s that vLLM"
            " may take"
            " of one %(gpu)s."
        ) % {
            "weights": gib(stage.weights),
            "overhead": gib(stage.overhead),
            "room": gib(group.requested),
            "gpu": group.seats[0].gpu.name,
        }

    def _ranked(self) -> list[Candidate]:
        """Speed first, then room; what is equal by both goes to the copy that depends on the fewest GPUs.

        Tensor parallelism over a slow network comes last, before it what `_stacked` finds. Among layouts near
        the best speed those with copies inside a host come first.
        """
        stacked = self._stacked()
        good = [c for c in self._candidates if self._allowed(c) and c not in stacked]
        fastest = max((c.speed for c in good), default=0.0)
        near = [c for c in good if c.speed >= NEAR * fastest]
        local = [c for c in near if not c.crosses] or near
        roomiest = max((c.worth for c in local), default=0)

        def order(c: Candidate) -> tuple[bool, bool, bool, bool, bool, int, float]:
            last, later = not self._allowed(c), c in stacked
            if last or later or c.speed < NEAR * fastest:
                return (last, later, True, True, True, 0, -c.speed)
            roomy = c.worth >= ROOMY * roomiest
            return (
                False,
                False,
                False,
                c.crosses,
                not roomy,
                c.tensor * c.pipeline if roomy else 0,
                -c.speed,
            )

        first_of_size: dict[tuple[int, int, int], Candidate] = {}
        for candidate in sorted(self._candidates, key=order):
            first_of_size.setdefault(candidate.size, candidate)
        return list(first_of_size.values())

    def _stacked(self) -> list[Candidate]:
        """Pipelines over like GPUs of one host where tensor parallelism would do about as well."""
        plain = max((c.speed for c in self._candidates if self._allowed(c) and not c.stacked), default=0.0)
        return [c for c in self._candidates if c.stacked and plain >= TENSOR_FIRST * c.speed]

    def _allowed(self, candidate: Candidate) -> bool:
        return not candidate.tensor_crosses or self.network.gbps >= NVLINK_GBPS


def matches(candidate: Candidate, wishes: Wishes) -> bool:
    """Whether the layout is the one that was asked for, where one was."""
    return wishes.tensor in (None, candidate.tensor) and wishes.pipeline in (None, candidate.pipeline)
