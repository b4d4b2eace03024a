"""The fleet and its charts in Chromium, on a whole Quarterdeck: live, after its server was killed, narrow, dark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import shot, signed_in
from tests.support import fleet
from tests.support.deck import ROOT, Deck, until

pytestmark = [pytest.mark.browser, pytest.mark.valkey]
MIB = fleet.MIB
COUNT = 14  # more than are shown as tiles at first


#: Nodes of two GPUs that nobody watches; the last one has none.
ROWS = """
import django, json, sys
django.setup()
from nodes.models import Node
from tests.support import fleet
count = int(sys.argv[1])
for n, node in enumerate(fleet.make(count, gpus=2)):
    node.refresh_from_db()
    facts = {**node.facts_json, "gpus": node.facts_json["gpus"] if n < count - 1 else []}
    labels = ["spare"] if n == 5 else []
    Node.objects.filter(pk=node.pk).update(name=f"gpu{n:02d}", cluster=None, facts_json=facts, labels=labels, reason="",
                                           state="failed" if n == 3 else "ready")
from deployments.models import Deployment
Deployment.objects.all().delete()
print(json.dumps(list(Node.objects.order_by("name").values_list("pk", flat=True))))
"""


class Fleet:
    """Rows in the Quarterdeck's own database, and a thread that says their samples once a second."""

    def __init__(self, var: Path) -> None:
        self.ids = self._rows(var)
        self.redis = redis.Redis(unix_socket_path=str(var / "valkey.sock"))
        self.silent: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._speak, daemon=True)

    @staticmethod
    def _rows(var: Path) -> list[int]:
        made = subprocess.run(
            [sys.executable, "-c", ROWS, str(COUNT)], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "QUARTERDECK_VAR": str(var)})
        return list(json.loads(made.stdout))

    def sample(self, number: int, at: float, used: int = 40_000) -> dict[str, Any]:
        gpus = [[i, used, MIB, 50, 60 + i, 300] for i in range(0 if number == self.ids[-1] else 2)]
        return {"t": round(at, 1), "cpu": 25, "mem": [2**32, 2**34], "disk": [1, 2], "gpus": gpus}

    def past(self, number: int, seconds: list[int]) -> None:
        """What the node said so many seconds ago."""
        now = time.time()
        for second in sorted(seconds, reverse=True):
            text = json.dumps(self.sample(number, now - second))
            self.redis.xadd(f"metrics:{number}", {"s": text}, id=f"{int((now - second) * 1000)}-0")

    def _speak(self) -> None:
        while not self._stop.wait(1):
            try:
                said = {n: json.dumps(self.sample(n, time.time())) for n in self.ids if n not in self.silent}
                pipe = self.redis.pipeline(transaction=False)
                for number, text in said.items():
                    pipe.xadd(f"metrics:{number}", {"s": text}, maxlen=3600)
                held = json.dumps([[0, 4242, 20_000, "alice", "python train.py", ""]])
                pipe.hset("telemetry:holders", str(self.ids[0]), held)
                news: Any = {**{f"s{n}": text for n, text in said.items()}, f"w{self.ids[0]}": held}
                pipe.xadd("telemetry:fleet", news, maxlen=60)
                pipe.execute()
            except redis.RedisError:
                continue  # the test restarts it

    def __enter__(self) -> Fleet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)


@pytest.fixture(scope="module")
def deck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deck]:
    running = Deck(tmp_path_factory.mktemp("deck"), PORT_BASE="27600")
    running.wait_for_address()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def nodes(deck: Deck) -> Iterator[Fleet]:
    with Fleet(deck.var) as speaking:
        speaking.past(speaking.ids[0], [n for n in range(5, 1500) if not 600 < n < 900])
        yield speaking


@pytest.fixture(scope="module")
def opened(browser: Browser, deck: Deck, nodes: Fleet) -> Iterator[Page]:
    with signed_in(browser, deck) as page:
        yield page


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    opened.set_viewport_size({"width": 1280, "height": 900})
    opened.emulate_media(color_scheme="light")
    opened.goto("/")
    opened.evaluate("localStorage.clear()")
    opened.goto("/")
    yield opened


@contextmanager
def sockets(page: Page) -> Iterator[list[str]]:
    page.goto("about:blank")  # the sockets of the page before are gone
    found: list[str] = []
    listener = lambda socket: found.append(socket.url)  # noqa: E731
    page.on("websocket", listener)
    yield found
    page.remove_listener("websocket", listener)


def strip(page: Page, name: str) -> Any:
    return page.locator(".strip-row", has=page.get_by_role("link", name=name, exact=True))


def test_many_nodes_are_strips_with_one_socket_and_filters(page: Page, nodes: Fleet) -> None:
    with sockets(page) as opened:
        page.goto("/")
        expect(strip(page, "gpu00").locator("[data-used]")).to_have_text("78")
    assert sum("/ws/telemetry" in url for url in opened) == 1
    expect(strip(page, "gpu00")).to_contain_text("python train.py (alice)")
    expect(strip(page, "gpu00").locator("title").first).to_have_text("GPU 0: 39.1 / 79.6 GiB, 50 %, 60 °C, 300 W")
    expect(page.locator("[data-sum=others]")).to_have_text(", 1 held by others")
    page.select_option("[name=state]", "failed")
    expect(page.locator("[data-count]")).to_have_text(f"1 of {COUNT}")
    expect(strip(page, "gpu03")).to_be_visible()
    expect(strip(page, "gpu00")).to_be_hidden()
    page.select_option("[name=state]", "")
    page.select_option("[name=label]", "spare")
    expect(page.locator("[data-count]")).to_have_text(f"1 of {COUNT}")
    page.select_option("[name=label]", "")
    page.fill("[name=free]", "81")
    expect(page.locator("[data-none]")).to_be_hidden()
    expect(page.locator("[data-count]")).to_have_text(f"{COUNT - 1} of {COUNT}")
    page.fill("[name=free]", "999")
    expect(page.locator("[data-none]")).to_be_visible()
    shot(page, "30-fleet-strips")


def test_tiles_say_who_holds_a_gpu_and_stay_as_wide(page: Page) -> None:
    page.locator(".fleet-bar label", has_text="Tiles").click()
    first = page.locator(".host", has=page.get_by_role("link", name="gpu00", exact=True))
    tile = first.locator(".tile").first
    expect(tile.locator("[data-used]")).to_have_text("39.1")
    expect(tile.locator("[data-temp]")).to_have_text("60 °C")
    expect(tile.locator("[data-who]")).to_contain_text("python train.py (alice)")
    expect(first.locator(".tile").nth(1).locator("[data-who]")).to_have_text("in use, nobody says by whom")
    width = "e => e.getBoundingClientRect().width"
    place = tile.locator("[data-used]")
    assert place.evaluate(width) == place.evaluate(f"e => {{ e.textContent = '9.1'; return ({width})(e); }}")
    page.reload()
    expect(page.locator(".host").first).to_be_visible()  # the choice is remembered
    last = page.locator(".host", has=page.get_by_role("link", name=f"gpu{COUNT - 1:02d}", exact=True))
    last.scroll_into_view_if_needed()
    expect(last.locator("[data-load]")).to_have_text("25 %")  # no GPU: CPU and memory take the tile's place
    expect(last.locator("[data-total]")).to_have_text("16.0")
    shot(page, "31-fleet-tiles")


def test_charts_replay_the_hour_show_the_gap_and_zoom_and_pause(page: Page) -> None:
    page.goto("/nodes/gpu00/")
    chart = page.locator("[data-chart][data-metric='gpu:0']")
    expect(chart.locator("[data-now]")).to_have_text("39.1")
    drawn = page.evaluate(CHART, "gpu:0")
    assert drawn["points"] > 150
    assert drawn["gaps"] == 1
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    before = page.evaluate(CHART, "gpu:0")["points"]
    page.wait_for_timeout(2500)
    assert page.evaluate(CHART, "gpu:0")["points"] == before
    pause.click()
    until(lambda: page.evaluate(CHART, "gpu:0")["points"] > before, 20, "it goes on after the pause")
    plot = chart.locator(".u-over").bounding_box()
    assert plot
    page.mouse.move(plot["x"] + plot["width"] * 0.6, plot["y"] + 20)
    page.mouse.down()
    page.mouse.move(plot["x"] + plot["width"] * 0.9, plot["y"] + 20, steps=4)
    page.mouse.up()
    whole = page.get_by_role("button", name="Whole span")
    expect(whole).to_be_visible()
    shown = page.evaluate(CHART, "gpu:0")["shown"]
    assert 300 < shown < 600
    whole.click()
    assert page.evaluate(CHART, "gpu:0")["shown"] > 1300
    page.locator(".chart-bar label", has_text="Month").click()
    until(lambda: page.evaluate(CHART, "gpu:0")["points"] == 0, 20, "nothing is as old as a month")
    shot(page, "32-charts")


CHART = """(metric) => {
  const { data, scales } = window.charts.find((chart) => chart.figure.dataset.metric === metric).u;
  const gaps = data[1].filter((value) => value === null).length;
  return { points: data[0].length, gaps, shown: scales.x.max - scales.x.min };
}"""


def test_the_page_comes_back_when_the_server_was_killed(page: Page, deck: Deck) -> None:
    page.goto("/nodes/gpu00/")
    expect(page.locator("#live")).to_have_text("Live")
    before = page.evaluate(CHART, "cpu")["points"]
    deck.kill("uvicorn")
    expect(page.locator("#live")).to_have_text("Reconnecting", timeout=20_000)
    expect(page.locator("#live")).to_have_text("Live", timeout=60_000)
    until(lambda: page.evaluate(CHART, "cpu")["points"] > before, 30, "the charts go on")
    assert page.evaluate(CHART, "cpu")["gaps"] == 1  # what came meanwhile was fetched: only the old gap is there


def test_a_phone_has_no_sideways_scroll(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for address in ("/", "/nodes/gpu00/", "/alerts/", "/alerts/settings/"):
        page.goto(address)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, address
        shot(page, f"33-phone{address.replace('/', '-')}")


def test_in_the_dark_the_charts_are_drawn_anew_in_other_colours(page: Page) -> None:
    page.goto("/nodes/gpu00/")
    expect(page.locator("[data-now]").first).not_to_have_text("–")
    stroke = "() => window.charts[0].u.series[1].stroke()"
    light = page.evaluate(stroke)
    page.emulate_media(color_scheme="dark")
    until(lambda: page.evaluate(stroke) != light, 20, "the chart has another colour")
    shot(page, "34-dark-node")
    page.goto("/")
    expect(strip(page, "gpu00").locator("[data-used]")).to_have_text("78")
    shot(page, "35-dark-fleet")
