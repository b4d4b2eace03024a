"""The browser's modules, driven in Chromium: no line of a log is lost or doubled, and text never becomes markup."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from playwright.sync_api import Browser, Page, Route, expect

from controlplane.middleware import CONTENT_SECURITY_POLICY
from controlplane.templatetags import deck

pytestmark = pytest.mark.browser
SITE = "http://deck.test"
LINES = """async (pieces) => {
  const { Lines } = await import("/static/js/lines.js");
  const lines = new Lines();
  const frame = (start, text) => {
    const bytes = typeof text === "string" ? new TextEncoder().encode(text) : Uint8Array.from(text);
    const whole = new Uint8Array(8 + bytes.length);
    new DataView(whole.buffer).setBigUint64(0, BigInt(start));
    whole.set(bytes, 8);
    return whole.buffer;
  };
  const taken = pieces.map(([start, text]) => lines.take(frame(start, text)));
  return { taken, offset: lines.offset, unfinished: lines.unfinished };
}"""
RENDER = """async (text) => {
  const { render } = await import("/static/js/markdown.js");
  const box = document.createElement("div");
  render(box, text);
  return box.innerHTML;
}"""
DURATION = """async ([words, seconds]) => {
  const { duration } = await import("/static/js/times.js");
  return seconds.map((one) => duration(one, words));
}"""
COUNT = """async (words) => {
  const told = Object.assign(document.createElement("template"), { id: "lengths" });
  Object.assign(told.dataset, words);
  const time = Object.assign(document.createElement("time"), { textContent: "58 s" });
  time.dataset.ago = "58";
  document.body.append(told, time);
  await import("/static/js/times.js?counting");
}"""
DRAW = """async (lines) => {
  const { LogView } = await import("/static/js/logview.js");
  const root = document.createElement("section");
  for (const name of ["box", "list", "status", "download", "follow", "wrap", "filter"]) {
    root.append(Object.assign(document.createElement("i"), { id: name }));
    root.lastChild.setAttribute(`data-${name}`, "");
  }
  document.body.append(root);
  const view = new LogView(root);
  view.add(lines, "unfinished");
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return [...root.querySelectorAll("li")].map((row) => [row.className, row.innerHTML]);
}"""


def serve(route: Route) -> None:
    """An empty page under the real policy, and the files of static/; no server and no network."""
    path = urlsplit(route.request.url).path
    if path.startswith("/static/"):
        route.fulfill(path=Path(settings.BASE_DIR) / path.removeprefix("/"))
    else:
        policy = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Content-Type": "text/html"}
        route.fulfill(body="<!doctype html><body></body>", headers=policy)


@pytest.fixture(scope="module")
def browser_page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    page.route("**/*", serve)
    yield page
    page.close()


@pytest.fixture
def page(browser_page: Page) -> Page:
    browser_page.goto(SITE)
    return browser_page


def lines(page: Page, *pieces: tuple[int, str | list[int]]) -> Any:
    return page.evaluate(LINES, [list(piece) for piece in pieces])


def test_pieces_that_follow_each_other_become_lines(page: Page) -> None:
    assert lines(page, (0, "one\ntw"), (6, "o\nthree")) == {
        "taken": [["one"], ["two"]],
        "offset": 13,
        "unfinished": "three",
    }


def test_a_piece_that_leaves_a_gap_is_not_taken(page: Page) -> None:
    found = lines(page, (0, "one\n"), (9, "later\n"))
    assert found["taken"] == [["one"], None]
    assert found["offset"] == 4


def test_a_piece_that_overlaps_is_not_drawn_twice(page: Page) -> None:
    found = lines(page, (0, "one\ntwo\n"), (0, "one\n"), (4, "two\nthree\n"))
    assert found["taken"] == [["one", "two"], [], None]
    assert found["offset"] == 8


def test_a_character_cut_in_two_is_put_together(page: Page) -> None:
    found = lines(page, (0, [0xE4, 0xBD]), (2, [0xA0, 0x0A]))
    assert found["taken"] == [[], ["你"]]


def test_a_carriage_return_replaces_the_line(page: Page) -> None:
    found = lines(page, (0, "10 %\r50 %\r"), (10, "100 %\r\nready\r\n"))
    assert found["taken"] == [[], ["100 %", "ready"]]


def test_the_lines_a_viewer_draws_hold_text_and_classes_only(page: Page) -> None:
    hostile = "\x1b[31;1mERROR\x1b[0m <img src=x onerror=alert(1)> \x1b[38;2;1;2;3mtrue colour\x1b[0m"
    (error, plain, last) = page.evaluate(DRAW, [hostile, "plain"])
    assert error[0] == "is-error"
    assert '<span class="a-bold ansi-red-fg">ERROR</span>' in error[1]
    assert "&lt;img" in error[1]
    assert "style" not in error[1]
    assert plain == ["", "plain"]
    assert last == ["", "unfinished"]


def test_what_a_model_writes_is_never_markup(page: Page) -> None:
    written = "<img src=x onerror=alert(1)> **<b>bold</b>**\n\n```\n<script>1</script>\n```\n- `<i>`"
    html = page.evaluate(RENDER, written)
    assert html == (
        "<p>&lt;img src=x onerror=alert(1)&gt; <strong>&lt;b&gt;bold&lt;/b&gt;</strong></p>"
        "<pre><code>&lt;script&gt;1&lt;/script&gt;</code></pre>"
        "<ul><li><code>&lt;i&gt;</code></li></ul>"
    )


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("# Title\ntext", "<p><strong>Title</strong></p><p>text</p>"),
        ("1. one\n2. two", "<ol><li>one</li><li>two</li></ol>"),
        ("an open ```\n```py\ncode", "<p>an open ```</p><pre><code>code</code></pre>"),
        ("", ""),
    ],
)
def test_a_small_part_of_markdown_is_laid_out(page: Page, text: str, html: str) -> None:
    assert page.evaluate(RENDER, text) == html


def test_the_pages_policy_stops_inline_script(page: Page) -> None:
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    page.wait_for_function("document.images[document.images.length - 1].complete")
    assert page.evaluate("window.ran") is None


def test_a_time_is_written_as_the_server_writes_it(page: Page) -> None:
    seconds = [0, 59, 60, 80, 3599, 3600, 86399, 86400, 190000]
    words = {unit: str(text) for unit, text in deck._LENGTHS.items()}
    assert page.evaluate(DURATION, [words, seconds]) == [deck.duration(one) for one in seconds]


def test_a_time_that_goes_on_is_counted_on(page: Page) -> None:
    page.evaluate(COUNT, {unit: str(text) for unit, text in deck._LENGTHS.items()})
    expect(page.locator("time")).to_have_text("1 min 0 s", timeout=10_000)
