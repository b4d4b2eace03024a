"""Whether a deployment's servers can be replaced without a gap, from plan and free memory. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy


class Way(StrEnum):
    """How the old servers give way to the new ones."""

    BESIDE = "beside"  # the new ones start beside the old: no gap
    ONE_BY_ONE = "one by one"  # each in the place of an old one, while the others answer: no gap, less room
    AT_ONCE = "at once"  # the old ones must end first: a gap as long as a start


#: What is said before servers are replaced.
WAYS: Mapping[Way | None, Promise] = {
    Way.BESIDE: gettext_lazy(
        "There is no gap: new servers start beside the old ones. Once they answer, requests go to them, and the old "
        "ones end when their last answers have."),
    Way.ONE_BY_ONE: gettext_lazy(
        "There is no gap: the GPUs do not hold old and new ones at once, so the copies are replaced one after another, "
        "while the others answer."),
    Way.AT_ONCE: gettext_lazy(
        "There will be a gap: the GPUs do not hold old and new servers at once, so the old ones end first. Requests "
        "are refused from then until the new ones answer, which takes as long as a start."),
}


@dataclass(frozen=True)
class Seat:
    """What one rank uses: a GPU of a host, or the host's memory where ``gpu`` is None. ``need`` in bytes."""

    host: str
    gpu: int | None
    need: int = 0


@dataclass(frozen=True)
class Room:
    """What there is at a seat's place. Bytes, as they are now, the old servers included in what is used."""

    total: int
    free: int


#: Copies of a deployment, each with its seats.
Copies = Sequence[Sequence[Seat]]


def way(old: Copies, new: Copies, room: Mapping[tuple[str, int | None], Room], *, by_ray: bool) -> Way:
    """How these servers can be replaced. ``by_ray``: whole GPUs are given out, whichever are free on a host."""
    fits = _whole_gpus_left(old, new, room) if by_ray else _memory_left(new, room)
    if fits:
        return Way.BESIDE
    return Way.ONE_BY_ONE if len(old) > 1 and _places(old) == _places(new) else Way.AT_ONCE


def _memory_left(new: Copies, room: Mapping[tuple[str, int | None], Room]) -> bool:
    needed: Counter[tuple[str, int | None]] = Counter()
    for seat in _all(new):
        needed[seat.host, seat.gpu] += seat.need
    return all(place in room and room[place].free >= need > 0 for place, need in needed.items())


def _whole_gpus_left(old: Copies, new: Copies, room: Mapping[tuple[str, int | None], Room]) -> bool:
    """Ray takes a GPU as a whole: those of the old servers are not free, however much memory they have left."""
    taken = {(seat.host, seat.gpu) for seat in _all(old)}
    largest: dict[str, int] = {}
    for seat in _all(new):
        largest[seat.host] = max(largest.get(seat.host, 0), seat.need)
    free = Counter(
        host for (host, gpu), there in room.items()
        if (host, gpu) not in taken and host in largest and there.free >= largest[host] > 0
    )  # fmt: skip
    wanted = Counter(seat.host for seat in _all(new))
    return bool(wanted) and all(free[host] >= count for host, count in wanted.items())


def _places(copies: Copies) -> Counter[tuple[tuple[str, int | None], ...]]:
    return Counter(tuple(sorted(((seat.host, seat.gpu) for seat in copy), key=repr)) for copy in copies)


def _all(copies: Copies) -> list[Seat]:
    return [seat for copy in copies for seat in copy]
