"""``bin/up --demo --once``, for real: it answers, says how long each part took, and leaves nothing running."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.deck import Deck, until

pytestmark = [pytest.mark.engine, pytest.mark.valkey]
PORT_BASE = 27600


def test_the_demo_answers_and_leaves_nothing_running(tmp_path: Path, node_root: Path) -> None:
    deck = Deck(
        tmp_path / "var", "--demo", "--once", PORT_BASE=str(PORT_BASE), QUARTERDECK_NODE_ROOT=str(node_root))
    until(lambda: deck.process.poll() is not None, 900, "the demo ends by itself")
    assert deck.stop() == 0, deck.output
    result = deck.result()
    assert (result["ok"], result["model"]) == (True, "smollm2")
    assert "Paris" in str(result["reply"])
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    assert {"setup", "start", "prepare", "ready", "reply", "total"} <= seconds.keys()
    assert deck.children() == []
    for port in (PORT_BASE, PORT_BASE + 340):
        with socket.create_server(("127.0.0.1", port)):
            pass  # Ray's and the model server's are free again
