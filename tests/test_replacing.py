"""Whether servers can be replaced without a gap: decided from plan and free memory, before anything is done."""

from __future__ import annotations

import pytest

from deployments.rollout.replacing import Copies, Room, Seat, Way, way

GIB = 2**30
NEED = 20 * GIB


def copies(*each: str) -> list[list[Seat]]:
    """``copies("te1:0 te1:1", "te2:0")``: two copies, the first on two GPUs."""
    return [[_seat(place) for place in copy.split()] for copy in each]


def _seat(place: str) -> Seat:
    host, _, gpu = place.partition(":")
    return Seat(host, int(gpu) if gpu else None, NEED)


def room(**free: str) -> dict[tuple[str, int | None], Room]:
    """``room(te1="23 3")``: free GiB of each GPU of a host, of 23 each."""
    return {
        (host, gpu): Room(23 * GIB, int(size) * GIB)
        for host, sizes in free.items() for gpu, size in enumerate(sizes.split())
    }  # fmt: skip


CASES: list[tuple[str, bool, Copies, Copies, dict[tuple[str, int | None], Room], Way]] = [
    ("a free GPU beside", False, copies("te1:0"), copies("te1:1"), room(te1="2 23"), Way.BESIDE),
    ("the same GPU", False, copies("te1:0"), copies("te1:0"), room(te1="2 23"), Way.AT_ONCE),
    ("a small model twice on one GPU", False, copies("te1:0"), copies("te1:0"), room(te1="21"), Way.BESIDE),
    ("two that need the same GPU", False, copies("te1:0"), copies("te1:1", "te1:1"), room(te1="2 23"), Way.AT_ONCE),
    ("two copies in place", False, copies("te1:0", "te1:1"), copies("te1:0", "te1:1"), room(te1="2 2"), Way.ONE_BY_ONE),
    ("two copies become one large", False, copies("te1:0", "te1:1"), copies("te1:0 te1:1"), room(te1="2 2"),
     Way.AT_ONCE),
    ("Ray has another GPU on the host", True, copies("te1:0"), copies("te1:0"), room(te1="2 23"), Way.BESIDE),
    ("Ray gives no part of a GPU", True, copies("te1:0"), copies("te1:0"), room(te1="21"), Way.AT_ONCE),
    ("Ray, and somebody else holds the other", True, copies("te1:0"), copies("te1:0"), room(te1="2 4"), Way.AT_ONCE),
    ("Ray over four hosts, full", True, copies("te1:0 te2:0"), copies("te1:0 te2:0"), room(te1="2", te2="2"),
     Way.AT_ONCE),
    ("Ray over hosts with a second GPU each", True, copies("te1:0 te2:0"), copies("te1:0 te2:0"),
     room(te1="2 23", te2="2 23"), Way.BESIDE),
    ("Ray, one host without", True, copies("te1:0 te2:0"), copies("te1:0 te2:0"), room(te1="2 23", te2="2"),
     Way.AT_ONCE),
    ("a host that is not known", False, copies("te1:0"), copies("te9:0"), room(te1="2 23"), Way.AT_ONCE),
    ("nothing planned", False, copies("te1:0"), [], room(te1="2 23"), Way.BESIDE),
]  # fmt: skip


@pytest.mark.parametrize(
    ("by_ray", "old", "new", "there", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_way(
    by_ray: bool, old: Copies, new: Copies, there: dict[tuple[str, int | None], Room], expected: Way
) -> None:
    assert way(old, new, there, by_ray=by_ray) is expected


def test_memory_of_a_host_without_gpus_is_a_place_too() -> None:
    there: dict[tuple[str, int | None], Room] = {("te1", None): Room(64 * GIB, 40 * GIB)}
    assert way(copies("te1"), copies("te1"), there, by_ray=False) is Way.BESIDE
    assert way(copies("te1"), copies("te1"), there, by_ray=True) is Way.AT_ONCE
