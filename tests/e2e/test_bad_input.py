"""Bad input in a browser, against a real sshd: one clear sentence and a next step, and nothing else changed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import shot, signed_in
from tests.support import sshd as sshd_support
from tests.support.deck import Deck, end_jobs
from tests.support.sshd import Sshd, free_port, keygen
from tests.support.stand_in_engine import StandInEngine

pytestmark = [pytest.mark.browser, pytest.mark.sshd, pytest.mark.valkey]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInEngine]:
    made = StandInEngine(tmp_path_factory.mktemp("stand-in"))
    yield made
    end_jobs(made.root)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, engine: StandInEngine) -> Iterator[Sshd]:
    """A server of each test's own, on a port of its own: what one test registers is nothing to another."""
    folder = tmp_path_factory.mktemp("server")
    running = sshd_support.start(folder)
    (folder / "home" / ".quarterdeck").symlink_to(engine.root)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def deck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deck]:
    running = Deck(tmp_path_factory.mktemp("deck"), PORT_BASE="26600")
    running.wait_for_address()
    yield running
    running.stop()


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, deck: Deck) -> Iterator[Page]:
    with signed_in(browser, deck) as opened:
        yield opened
        shot(opened, f"last-{request.node.name}")


def fill(page: Page, server: Sshd, name: str, **fields: str) -> None:
    page.goto("/nodes/new/")
    typed = {"name": name, "address": server.address, "port": str(server.port), "user": server.user, **fields}
    method = "Password" if "password" in fields else "Private key"
    page.locator("label", has_text=method).first.click()
    for field, value in typed.items():
        page.fill(f"[name={field}]", value)
    page.get_by_role("button", name="Show its host key").click()


def register(page: Page, server: Sshd, name: str) -> None:
    fill(page, server, name, private_key=server.key)
    page.get_by_role("button", name="Approve and register").click()
    page.wait_for_url(f"**/nodes/{name}/")
    expect(page.locator("#head .state")).to_contain_text("ready", timeout=30_000)


def remove(page: Page, name: str) -> None:
    page.goto(f"/nodes/{name}/")
    page.get_by_role("button", name="Remove").first.click()
    page.get_by_role("dialog").get_by_label("Only forget it").check()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    page.wait_for_url("**/nodes/")


def expect_no_node(page: Page, name: str) -> None:
    assert page.request.get(f"/nodes/{name}/").status == 404


def problem(page: Page) -> str:
    alert = page.get_by_role("alert").first
    expect(alert).to_be_visible()
    return alert.inner_text()


def test_a_wrong_password(page: Page, server: Sshd) -> None:
    before = server.authorized_keys.read_text()
    fill(page, server, "wrong", password="not the password")
    page.get_by_role("button", name="Approve and register").click()
    said = problem(page)
    assert "refused the sign-in" in said
    assert "Check the user name" in said
    expect_no_node(page, "wrong")
    assert server.authorized_keys.read_text() == before


def test_an_address_that_cannot_be_reached(page: Page, server: Sshd) -> None:
    fill(page, server, "nobody", port=str(free_port()), private_key=server.key)
    said = problem(page)
    assert "cannot be reached: nothing listens on this port." in said
    assert "Check the address and port" in said
    page.get_by_role("link", name="Change the form").click()
    assert page.input_value("[name=name]") == "nobody"
    assert page.input_value("[name=private_key]") == ""
    expect_no_node(page, "nobody")


def test_a_wrong_passphrase(page: Page, server: Sshd, tmp_path: Path) -> None:
    protected = keygen(tmp_path / "key", passphrase="open sesame")
    fill(page, server, "locked", private_key=protected, passphrase="wrong")
    said = problem(page)
    assert "The passphrase does not open the private key." in said
    expect_no_node(page, "locked")


def test_a_changed_host_key_refuses_and_shows_both(page: Page, server: Sshd) -> None:
    register(page, server, "changed")
    old = server.host_key.fingerprint
    server.restart(new_host_key=True)
    page.get_by_role("button", name="Check again").click()
    problems = page.locator("#problems")
    expect(problems).to_contain_text(server.host_key.fingerprint, timeout=90_000)
    expect(problems).to_contain_text(old)
    expect(problems).to_contain_text("Nothing runs there until an admin approves the new one.")
    shot(page, "10-changed-host-key")
    page.get_by_role("button", name="approve the new key").click()
    expect(page.locator("#head .state")).to_contain_text("ready", timeout=60_000)
    remove(page, "changed")


def roll_out(page: Page, name: str, node: str, **fields: str) -> None:
    page.goto("/deployments/new/")
    page.fill("[name=name]", name)
    if "path" in fields:
        page.get_by_text("Path on the node", exact=True).click()
    page.select_option("[name=where]", label=node)
    for field, value in fields.items():
        page.fill(f"[name={field}]", value)
    page.get_by_role("button", name="Roll out").click()
    page.wait_for_url(f"**/deployments/{name}/")


def test_a_model_path_that_does_not_exist_and_a_port_in_use(page: Page, server: Sshd) -> None:
    register(page, server, "lab")
    roll_out(page, "gone", "lab", path="/data/models/none")
    expect(page.locator("#head .state")).to_contain_text("failed", timeout=60_000)
    expect(page.locator("main")).to_contain_text("There is no /data/models/none on this server.")
    shot(page, "11-deployment-failed")

    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        roll_out(page, "taken", "lab", port=str(port))
        expect(page.locator("#head .state")).to_contain_text("failed", timeout=60_000)
    expect(page.locator("main")).to_contain_text(f"Port {port} on lab is in use by another program.")


def test_a_prompt_to_a_stopped_deployment(page: Page, server: Sshd, engine: StandInEngine) -> None:
    register(page, server, "lab-to-stop")
    roll_out(page, "small", node="lab-to-stop")
    expect(page.locator("#head .state")).to_contain_text("ready", timeout=90_000)
    page.goto("/playground/?model=small")
    page.fill("[name=message]", "hello")
    other = page.context.new_page()
    other.goto("/deployments/small/")
    other.get_by_role("button", name="Stop").first.click()
    if other.get_by_role("dialog").is_visible():
        other.get_by_role("dialog").get_by_role("button", name="Stop").click()
    expect(other.locator("#head .state")).to_contain_text("stopped", timeout=60_000)
    other.close()
    expect(page.locator("#columns")).to_contain_text("small does not answer now: stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    refused = page.request.post(
        "/v1/chat/completions", headers={"Authorization": f"Bearer {token(page)}"},
        data={"model": "small", "messages": [{"role": "user", "content": "hello"}]})
    assert refused.status == 503
    assert refused.json()["error"]["message"] == (
        "The model “small” is stopped. Start its deployment again on its page.")
    shot(page, "12-prompt-to-a-stopped-deployment")


def token(page: Page) -> str:
    return str(page.locator("#token").text_content()).strip('"')
