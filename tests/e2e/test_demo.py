"""``bin/up --demo --once``, for real: it answers, says how long each part took, and leaves nothing running."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from deployments import dry_run
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
    refuses_what_cannot_be(node_root)


def refuses_what_cannot_be(node_root: Path) -> None:
    """What the demo installed says of options that it cannot start with, before anything is started."""
    model = f"{node_root}/models/smollm2-135m-instruct"
    asked = {"model": model, "distributed-executor-backend": "mp", "tensor-parallel-size": 2}
    program = [str(node_root / "env" / "bin" / "python"), "-c", dry_run.PROGRAM, json.dumps(asked)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(program, env=offline, capture_output=True, text=True, timeout=100, check=False)
    verdict = dry_run.answer_of(done.stdout)
    assert verdict.word == "refused"
    assert "attention heads (9) must be divisible by tensor parallel size (2)" in verdict.why
