"""Nobody fills the disk: what is sent to a page is bounded before Django takes it, signed in or not."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator

import httpx
import pytest

from controlplane.asgi import application
from controlplane.bounds import MOST_SENT
from tests.support.gateway_world import serving

pytestmark = pytest.mark.django_db(transaction=True)
PIECE = 1 << 20


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(application) as port, httpx.AsyncClient(timeout=20, trust_env=False) as client:
        client.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        yield client


@pytest.fixture
def spooled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each write into Django's spool."""
    sizes: list[int] = []

    class Spool(tempfile.SpooledTemporaryFile[bytes]):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            sizes.append(len(data))
            return super().write(data)

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Spool)
    return sizes


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * PIECE


async def test_what_is_announced_too_large_never_reaches_django(http: httpx.AsyncClient, spooled: list[int]) -> None:
    answer = await http.post("/sign-in/", content=b"x" * (MOST_SENT + 1))
    assert answer.status_code == 413
    assert answer.text == "This is larger than 9 MB, the most that a page may send. Send less at once."
    assert not spooled


async def test_what_comes_in_pieces_is_counted(http: httpx.AsyncClient, spooled: list[int]) -> None:
    answer = await http.post("/sign-in/", content=pieces(30))
    assert answer.status_code == 413
    assert sum(spooled) <= MOST_SENT


async def test_as_much_as_the_playground_takes_is_let_through(http: httpx.AsyncClient, spooled: list[int]) -> None:
    for content in (b"x" * MOST_SENT, pieces(9)):
        answer = await http.post("/playground/conversations/", content=content)
        assert answer.status_code == 403  # of Django, for the CSRF token
    assert sum(spooled) == 2 * MOST_SENT
