"""The main job in a browser: a server is registered over SSH, prepared, a model deployed, and it answers."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import shot
from tests.support.deck import Deck, until
from tests.support.sshd import Sshd

pytestmark = [pytest.mark.browser, pytest.mark.engine, pytest.mark.sshd, pytest.mark.valkey]

PREPARING_MS = 8 * 60_000
STARTING_MS = 5 * 60_000


def register(page: Page, lab: Sshd, name: str, private_key: str = "") -> None:
    page.goto("/nodes/new/")
    page.fill("[name=name]", name)
    page.fill("[name=address]", lab.address)
    page.fill("[name=port]", str(lab.port))
    page.fill("[name=user]", lab.user)
    page.get_by_text("Private key", exact=True).first.click()
    page.fill("[name=private_key]", private_key or lab.key)
    page.get_by_role("button", name="Show its host key").click()


def log_lines(page: Page) -> int:
    return page.locator("[data-tail] [data-list] li").count()


def test_from_an_empty_page_to_a_streamed_reply(page: Page, deck: Deck, lab: Sshd, node_root: Path) -> None:
    # Where another test has installed the packages already, they are looked through again: there is a job to watch.
    (node_root / "env" / "quarterdeck.lock").unlink(missing_ok=True)
    page.goto("/")
    expect(page.get_by_role("heading", name="Try a small model on this machine")).to_be_visible()
    shot(page, "01-empty-overview")

    register(page, lab, "lab")
    expect(page.locator("[data-fingerprint]")).to_have_text(lab.host_key.fingerprint)
    shot(page, "02-fingerprint")
    page.get_by_role("button", name="Approve and register").click()
    page.wait_for_url("**/nodes/lab/")
    expect(page.locator("#facts")).to_contain_text("Operating system", timeout=20_000)

    prepare(page, deck)
    until_log_is_whole(page, node_root)
    deploy_and_look(page)
    ask_in_the_playground(page)
    stop(page)


def prepare(page: Page, deck: Deck) -> None:
    """Prepare the node, and kill each of our processes in the middle of it."""
    page.get_by_role("button", name="Prepare").click()
    expect(page.locator("#runs")).to_contain_text("Packages", timeout=30_000)
    until(lambda: log_lines(page) > 5, 60, "pip's lines arrive in the browser")
    shot(page, "03-preparing")
    deck.kill("celery")
    deck.kill("manage.py", "watch")
    deck.kill("uvicorn")
    settles(page, PREPARING_MS)
    shot(page, "04-prepared")


def settles(page: Page, milliseconds: int) -> None:
    """Wait until it is ready; as soon as it failed, say what the page says of it."""
    state = page.locator("#head .state")
    expect(state).to_contain_text(re.compile("ready|failed"), timeout=milliseconds)
    assert "ready" in state.inner_text(), page.locator("main").inner_text()


def until_log_is_whole(page: Page, node_root: Path) -> None:
    """What the browser downloads is byte for byte what lies on the node, for every job."""
    jobs = page.locator("[data-log]").evaluate_all("all => all.map(one => one.dataset.log)")
    assert jobs
    for job in set(jobs):
        on_node = (node_root / "jobs" / job / "log").read_bytes()
        downloaded = page.request.get(f"/jobs/{job}/log").body()
        assert hashlib.sha256(downloaded).hexdigest() == hashlib.sha256(on_node).hexdigest()


def deploy_and_look(page: Page) -> None:
    page.goto("/deployments/new/")
    page.fill("[name=name]", "smollm2")
    page.get_by_role("button", name="Roll out").click()
    page.wait_for_url("**/deployments/smollm2/")
    until(lambda: log_lines(page) > 3, 120, "vLLM's lines arrive in the browser")
    until(lambda: page.locator("canvas").count() > 0, 20, "a memory chart is drawn")
    before = chart(page)
    until(lambda: chart(page) != before, 20, "the memory chart moves")
    shot(page, "05-rolling-out")
    settles(page, STARTING_MS)
    page.reload()
    until(lambda: log_lines(page) > 3, 20, "the log is there again after a reload")
    shot(page, "06-deployment-ready")
    page.set_viewport_size({"width": 390, "height": 844})
    shot(page, "07-deployment-phone")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 1280, "height": 900})
    shot(page, "08-deployment-dark")
    page.emulate_media(color_scheme="light")


def chart(page: Page) -> str:
    return str(page.locator("canvas").first.evaluate("canvas => canvas.toDataURL()"))


def ask_in_the_playground(page: Page) -> None:
    page.goto("/playground/")
    page.fill("[name=temperature]", "0")
    page.fill("[name=max_tokens]", "48")
    page.fill("[name=message]", "What is the capital of France?")
    page.get_by_role("button", name="Send").click()
    answer = page.locator("article.answer").first
    expect(answer.locator("[data-text]")).to_contain_text("Paris", timeout=60_000)
    expect(answer.locator("[data-state=done]")).to_be_visible(timeout=60_000)
    speed = answer.locator("[data-speed]").inner_text()
    assert re.search(r"\d", speed), speed
    shot(page, "09-playground")


def stop(page: Page) -> None:
    page.goto("/deployments/smollm2/")
    page.get_by_role("button", name="Stop").first.click()
    dialog = page.get_by_role("dialog")
    if dialog.is_visible():
        dialog.get_by_role("button", name="Stop").click()
    expect(page.locator("#head .state")).to_contain_text("stopped", timeout=60_000)
    reply = page.request.post(
        "/v1/chat/completions", headers={"Authorization": f"Bearer {token(page)}"},
        data={"model": "smollm2", "messages": [{"role": "user", "content": "hello"}]})
    assert reply.status == 503
    assert "stopped" in reply.json()["error"]["message"]


def token(page: Page) -> str:
    page.goto("/playground/")
    found = page.locator("#token")
    return str(found.text_content() or "").strip('"') if found.count() else ""
