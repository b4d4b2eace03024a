"""One Quarterdeck, one SSH server and one browser for all end-to-end tests; screenshots go to SCREENSHOTS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.support import sshd as sshd_support
from tests.support.deck import Deck
from tests.support.sshd import Sshd


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, node_root: Path) -> Iterator[Sshd]:
    """A server to register over SSH; its ~/.quarterdeck is `node_root`."""
    folder = tmp_path_factory.mktemp("lab")
    server = sshd_support.start(folder)
    (folder / "home" / ".quarterdeck").symlink_to(node_root)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def deck(tmp_path_factory: pytest.TempPathFactory, node_root: Path) -> Iterator[Deck]:
    running = Deck(tmp_path_factory.mktemp("deck"), PORT_BASE="23600", QUARTERDECK_NODE_ROOT=str(node_root))
    running.wait_for_address()
    yield running
    running.stop()


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, deck: Deck) -> Iterator[Page]:
    with signed_in(browser, deck) as opened:
        yield opened
        shot(opened, f"last-{request.node.name}")


@contextmanager
def signed_in(browser: Browser, deck: Deck) -> Iterator[Page]:
    """The administrator's page at 1280 px; a script's error or a refusal by the CSP fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=deck.wait_for_address())
    opened = context.new_page()
    opened.set_default_timeout(15_000)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None)
    opened.goto("/sign-in/")
    opened.fill("#id_username", "admin")
    opened.fill("#id_password", deck.password)
    opened.get_by_role("button", name="Sign in").click()
    opened.wait_for_url("**/")
    yield opened
    context.close()
    assert complaints == []


def shot(page: Page, name: str) -> None:
    """A picture of the whole page, for a person to look at."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)
