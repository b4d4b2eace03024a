"""A server that is about to answer is asked until it does, within the look; one that loads, once."""

from __future__ import annotations

import pytest

from deployments import engine
from deployments.models import Replica
from deployments.rollout import serving
from deployments.rollout.phases import OPENING, STARTED, Progress


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The answers of a server that is there when it is asked for the third time."""
    given: list[bool] = []

    def answers(_replica: Replica) -> bool:
        given.append(len(given) == 2)
        return given[-1]

    monkeypatch.setattr(engine, "answers", answers)
    return given


@pytest.mark.parametrize("percent", [OPENING, STARTED])
def test_one_that_opens_its_endpoint_is_asked_until_it_answers(asked: list[bool], percent: int) -> None:
    assert serving._answers(Replica(), Progress("listening", percent))
    assert asked == [False, False, True]


def test_one_that_loads_is_asked_once(asked: list[bool]) -> None:
    assert not serving._answers(Replica(), Progress("weights", 40))
    assert asked == [False]


def test_one_that_never_answers_is_left_for_the_next_look(
    asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_LAST_SECOND", 0.0)
    assert not serving._answers(Replica(), Progress("started", STARTED))
    assert asked == [False]
