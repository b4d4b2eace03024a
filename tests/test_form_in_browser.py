"""The form of a deployment in Chromium: the plan follows what is typed, the focus stays, a button fills the fields."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextvars import Context, copy_context
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.test import Client
from playwright.sync_api import Browser, Page, Route, expect

from deployments import model_files
from nodes.models import Cluster, Node
from nodes.remote.local import LocalHost
from tests.plans import HERE
from tests.test_deployment_form import add_node
from tests.test_pages import signed_in

pytestmark = [pytest.mark.browser, pytest.mark.django_db]
SITE = "http://deck.test"


@pytest.fixture(scope="module", autouse=True)
def beside_the_browsers_loop() -> None:
    """Playwright's loop runs in this thread, where Django then refuses the database. Browser tests come last."""
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"


@pytest.fixture
def page(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """The form over the article's four hosts, answered by Django in this thread."""
    monkeypatch.setattr(model_files, "shared_host", lambda node: LocalHost())
    nodes = [add_node(f"te{i}") for i in range(1, 5)]
    cluster = Cluster.objects.create(name="four-a10", head=nodes[0])
    Node.objects.update(cluster=cluster)
    client = signed_in("operator")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    here = copy_context()  # Playwright calls back in another one, which has another connection to the database
    page.route("**/*", lambda route: answer(route, client, here))
    page.goto(f"{SITE}/deployments/new/")
    yield page
    page.close()


def answer(route: Route, client: Client, here: Context) -> None:
    path = urlsplit(route.request.url).path
    if path.startswith("/static/"):
        route.fulfill(path=Path(settings.BASE_DIR) / path.removeprefix("/"))
        return
    kind, body = route.request.headers.get("content-type", ""), route.request.post_data or ""
    method = route.request.method
    said = here.run(client.generic, method, path, body, kind, HTTP_HX_REQUEST="true" if method == "POST" else "")
    route.fulfill(status=said.status_code, body=said.content, headers={"content-type": "text/html"})


def fill(page: Page) -> None:
    page.get_by_text("Path on the node", exact=True).click()
    page.fill("[name=path]", str(HERE / "qwen2.5-14b"))


def test_the_plan_follows_the_typing_and_the_focus_stays(page: Page) -> None:
    plan = page.locator("#plan")
    expect(plan).to_contain_text("4 copies, each on 1 GPU")  # the demo, at once
    fill(page)
    expect(plan).to_contain_text("one copy on 4 pipeline stages, 1 GPU each")
    page.locator("[name=extra]").press_sequentially("disable-log-requests", delay=20)
    expect(page.locator("#flags")).to_contain_text("disable-log-requests is gone")
    assert page.evaluate("document.activeElement.name") == "extra"
    assert page.input_value("[name=extra]") == "disable-log-requests"


def test_a_layout_is_taken_over_with_a_button(page: Page) -> None:
    fill(page)
    row = page.locator("tr", has=page.get_by_text("TP=2, PP=2", exact=True))
    row.get_by_role("button", name="Use").click()
    expect(page.locator("#plan")).to_contain_text("2 pipeline stages, 2 GPUs each")
    assert page.input_value("[name=tensor_parallel_size]") == "2"
    assert page.is_visible("[name=copies]")
    page.fill("[name=tensor_parallel_size]", "3")
    expect(page.locator("#plan")).to_contain_text("40 attention heads cannot be divided by 3.")
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#plan")).to_contain_text("fits")


def test_the_commands_stay_open_while_somebody_types(page: Page) -> None:
    fill(page)
    page.get_by_text("Show commands").click()
    page.fill("[name=max_model_len]", "4096")
    expect(page.locator("#plan")).to_contain_text("max-model-len: 4096")
    assert page.locator("#plan details").first.get_attribute("open") is not None
