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
  const frame = (start, text, time) => {
    const bytes = typeof text === "string" ? new TextEncoder().encode(text) : Uint8Array.from(text);
    const whole = new Uint8Array(16 + bytes.length);
    const head = new DataView(whole.buffer);
    head.setBigUint64(0, BigInt(start));
    head.setBigUint64(8, BigInt(time));
    whole.set(bytes, 16);
    return whole.buffer;
  };
  const taken = pieces.map(([start, text, time]) => lines.take(frame(start, text, time ?? 0)));
  const texts = taken.map((found) => found && found.map(({ text }) => text));
  const places = taken.flatMap((found) => (found ?? []).map(({ offset, time }) => [offset, time]));
  return { taken: texts, places, offset: lines.offset, unfinished: lines.unfinished };
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
PANE = """
  const { Pane } = await import("/static/js/pane.js");
  const box = document.createElement("div");
  box.innerHTML = "<div data-list></div>";
  box.style.cssText = "height: 300px; overflow: auto";
  document.body.append(box);
  const frames = (n) => new Promise((done) => {
    const next = () => (n-- > 0 ? requestAnimationFrame(next) : done());
    next();
  });
  const line = (text, at) => ({ text, offset: at, time: 0 });
"""
DRAW = f"""async (lines) => {{{PANE}
  const pane = new Pane(box);
  pane.add("job", lines.map(line), "unfinished");
  await frames(2);
  for (const time of box.querySelectorAll(".at")) time.remove();
  return [...box.querySelectorAll("li")].map((row) => [row.className, row.innerHTML]);
}}"""
MANY = f"""async (count) => {{{PANE}
  const pane = new Pane(box);
  let longest = 0;
  let last = performance.now();
  const watch = () => {{
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
    if (pane.fresh.length || pane.frame || pane.filtering) requestAnimationFrame(watch);
  }};
  pane.add("job", Array.from({{ length: count }}, (_, at) => line(`line ${{at}} ` + "x".repeat(90), at)));
  watch();
  while (pane.fresh.length || pane.frame) await frames(1);
  await frames(2);
  const atEnd = pane.scroll.atEnd();
  pane.filter("line 77777 ");
  last = performance.now();
  watch();
  while (pane.filtering) await frames(1);
  const shown = [...box.querySelectorAll("li:not([hidden])")].length;
  return {{ rows: box.querySelectorAll("li").length, longest, shown, atEnd }};
}}"""
MERGE = f"""async () => {{{PANE}
  const pane = new Pane(box, {{ name: (job) => ({{ text: job, number: 1 }}), logs: 2 }});
  const timed = (text, time) => ({{ text, time, offset: time }});
  pane.add("te1", [timed("a", 1), timed("d", 4), timed("continues", 0)]);
  await frames(3); // the past of the other has not come yet
  pane.add("te2", [timed("b", 2), timed("e", 5)]);
  while (pane.fresh.length || pane.frame) await frames(1);
  return [...box.querySelectorAll("li")].map((row) => row.querySelector(".of").textContent + row.lastChild.textContent);
}}"""


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


def lines(page: Page, *pieces: tuple[int, str | list[int]] | tuple[int, str, int]) -> Any:
    return page.evaluate(LINES, [list(piece) for piece in pieces])


def test_pieces_that_follow_each_other_become_lines(page: Page) -> None:
    assert lines(page, (0, "one\ntw", 70), (6, "o\nthree\nfo", 80)) == {
        "taken": [["one"], ["two", "three"]],
        "places": [[0, 70], [4, 70], [8, 80]],  # byte of its beginning, when that came
        "offset": 16,
        "unfinished": "fo",
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


def test_a_line_without_end_is_broken_or_its_progress_forgotten(page: Page) -> None:
    found = lines(page, (0, "x" * 300_000), (300_000, "y\n"))
    assert [len(text) for text in found["taken"][0]] == [300_000]
    assert found["taken"][1] == ["y"]
    found = lines(page, (0, "50 %\r" * 60_000), (300_000, "100 %\n"))
    assert (found["taken"], found["offset"]) == ([[], ["100 %"]], 300_006)


def test_a_hundred_thousand_lines_are_drawn_while_the_page_answers(page: Page) -> None:
    """Bounds are wide: this machine is shared. They are for what grows with the square of the lines."""
    found = page.evaluate(MANY, 100_000)
    assert (found["rows"], found["atEnd"], found["shown"]) == (100_000, True, 1)
    assert found["longest"] < 2000


def test_logs_of_several_nodes_go_by_time(page: Page) -> None:
    assert page.evaluate(MERGE) == ["te1a", "te2b", "te1d", "te1continues", "te2e"]


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
