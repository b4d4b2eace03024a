"""`lab4`: four hosts for all tests of a session. `lab_deck`: a whole Quarterdeck with them registered.

A test puts back what it changed. One that needs hosts of its own makes a `Lab`, which takes a third of a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab
from tests.lab.deck import LabDeck
from tests.support.deck import end_jobs


@pytest.fixture(scope="session")
def lab4() -> Iterator[Lab]:
    with Lab(4) as lab:
        yield lab


@pytest.fixture(scope="session")
def lab_deck(tmp_path_factory: pytest.TempPathFactory, lab4: Lab) -> Iterator[LabDeck]:
    deck = LabDeck(tmp_path_factory.mktemp("lab-deck"))
    try:
        deck.wait_for_address()
        deck.register(*lab4.hosts)
        yield deck
    finally:
        deck.stop()


@pytest.fixture(scope="session")
def node_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where environments and models are installed, once for all tests. QUARTERDECK_TEST_NODE_ROOT keeps it."""
    kept = os.environ.get("QUARTERDECK_TEST_NODE_ROOT")
    root = Path(kept) if kept else tmp_path_factory.mktemp("node-root")
    yield root
    end_jobs(root)
