"""``bin/up``: one command to a page that answers; whatever stands in its way is one clear sentence."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from controlplane import embedded, terminal
from controlplane.embedded import Refused
from controlplane.terminal import Terminal, wait_until
from tests.test_processes import alive

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


@pytest.fixture
def var() -> Iterator[Path]:
    """A private var/ with a path short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="qd-up-") as directory:
        yield Path(directory) / "var"


# --- the whole of it --------------------------------------------------------------------


class Running:
    """``manage.py up`` as a process; its output so far is in ``text``."""

    def __init__(self, var: Path, *options: str, output: str = "output.txt") -> None:
        var.mkdir(mode=0o700, exist_ok=True)
        self.output = var.parent / output
        private = ("DATABASE_URL", "REDIS_URL", "QUARTERDECK_CLOCK")
        env = {name: value for name, value in os.environ.items() if name not in private}
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "up", *options],
                cwd=ROOT, env={**env, "QUARTERDECK_VAR": str(var)}, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        def there() -> bool:
            return bool(re.search(pattern, self.text)) or self.process.poll() is not None

        wait_until(there, seconds)
        found = re.search(pattern, self.text)
        assert found, self.text
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def children(self) -> dict[str, int]:
        """The processes it started: a word of their command line → pid."""
        path = Path(f"/proc/{self.process.pid}/task")
        pids = [int(pid) for task in path.glob("*/children") for pid in task.read_text().split()]
        names = {"uvicorn": "web", "celery": "worker", "watch": "watch", "valkey": "valkey"}
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids}
        return {name: pid for pid, line in lines.items() for word, name in names.items() if word in line}


@pytest.fixture
def up(var: Path) -> Iterator[Running]:
    running = Running(var, "--port", "0")
    try:
        running.wait_for("Ctrl-C stops it")
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def status(url: str) -> int:
    with contextlib.closing(urllib.request.build_opener().open(url, timeout=10)) as answer:
        return int(answer.status)


@pytest.mark.valkey
def test_one_command_leads_to_a_page_and_leaves_nothing_behind(up: Running, var: Path) -> None:
    url = up.wait_for(ADDRESS.pattern)[0]
    assert status(f"{url}/sign-in/") == 200
    password = (var / "admin-password").read_text().strip()
    assert f"Sign in as admin with the password {password}" in up.text
    children = up.children()
    assert set(children) == {"web", "worker", "watch", "valkey"}

    assert up.stop(signal.SIGINT) == 0
    assert "Quarterdeck is stopped." in up.text
    assert [name for name, pid in children.items() if alive(pid)] == []
    assert not (var / "valkey.sock").exists()
    with pytest.raises(urllib.error.URLError):
        status(url)


@pytest.mark.valkey
def test_what_dies_is_started_again_and_the_terminal_says_so(up: Running) -> None:
    url = up.wait_for(ADDRESS.pattern)[0]
    before = up.children()
    for name in ("web", "worker", "watch", "valkey"):
        os.kill(before[name], signal.SIGKILL)
        up.wait_for(f"{name} ended \\(killed by SIGKILL; see .*{name}.log\\)")

    def back() -> bool:
        now = up.children()
        return set(now) == set(before) and not set(now.values()) & set(before.values())

    assert wait_until(back, 30), up.text
    assert wait_until(lambda: answers(f"{url}/sign-in/"), 30)


def answers(url: str) -> bool:
    try:
        return status(url) == 200
    except OSError:
        return False


@pytest.mark.valkey
def test_a_second_one_on_the_same_directory_is_refused_and_changes_nothing(up: Running, var: Path) -> None:
    before = up.children()
    second = Running(var, "--port", "0", output="second.txt")
    assert second.process.wait(60) == 2
    assert f"already runs from {var} (process {up.process.pid}, http://127.0.0.1:" in second.text
    assert "Traceback" not in second.text
    assert up.children() == before


@pytest.mark.valkey
def test_the_second_start_finds_everything_as_it_was(up: Running, var: Path) -> None:
    password = (var / "admin-password").read_text()
    assert up.stop() == 0
    again = Running(var, "--port", "0")
    try:
        again.wait_for("Ctrl-C stops it")
        assert (var / "admin-password").read_text() == password
        assert f"password {password.strip()}" in again.text
    finally:
        again.stop()


def test_a_taken_port_is_named_before_anything_starts(var: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused = Running(var, "--port", str(port))
        assert refused.process.wait(60) == 2
    assert f"Port {port} on 127.0.0.1 is in use by another program." in refused.text
    assert f"bin/up --port {port + 1}" in refused.text
    assert "Traceback" not in refused.text
    assert not (var / "valkey").exists()


def test_once_ends_with_one_line_of_json_even_when_refused(var: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        refused = Running(var, "--once", "--port", str(server.getsockname()[1]))
        refused.process.wait(60)
    told = json.loads(refused.text.splitlines()[-1])
    assert (told["ok"], told["reply"]) == (False, None)
    assert re.match(r"Port \d+ on 127\.0\.0\.1 is in use", told["error"])


def test_a_port_that_is_none_is_refused(var: Path) -> None:
    refused = Running(var, "--port", "70000")
    assert refused.process.wait(60) == 2
    assert "'70000' is not a port: a number from 0 to 65535" in refused.text


# --- its parts --------------------------------------------------------------------------


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(Refused, match=r"192\.0\.2\.1 is not an address of this machine"):
        embedded.free_port("192.0.2.1", 0)


def test_a_host_name_nobody_knows_is_refused() -> None:
    with pytest.raises(Refused, match=r"deck\.invalid is not an address of this machine"):
        embedded.free_port("deck.invalid", 8000)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104
        ("::", "http://[::1]:8000"),
        ("deck.lab", "http://deck.lab:8000"),
    ],
)
def test_the_address_shown_can_be_typed_into_a_browser(host: str, url: str) -> None:
    assert embedded.url(host, 8000) == url


def test_a_lock_is_free_again_after_its_holder(tmp_path: Path) -> None:
    with embedded.only_one(tmp_path, "http://here"):
        refuse_another(tmp_path, "http://here")
    with embedded.only_one(tmp_path, "http://there"):
        assert "http://there" in (tmp_path / "up.lock").read_text()


def refuse_another(var: Path, why: str) -> None:
    with pytest.raises(Refused, match=why), embedded.only_one(var, "http://another"):
        pass


def test_a_var_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("")
    refuse_another(tmp_path / "var", "cannot be written to: Not a directory")


@pytest.mark.django_db
def test_the_first_administrator_gets_a_password_that_only_the_owner_can_read(tmp_path: Path) -> None:
    user, password = embedded.administrator(tmp_path)
    kept = tmp_path / "admin-password"
    assert user.is_superuser and password and user.check_password(password)
    assert kept.read_text() == f"{password}\n"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert embedded.administrator(tmp_path) == (user, password)


@pytest.mark.django_db
def test_a_password_that_was_changed_is_not_shown_any_more(tmp_path: Path) -> None:
    user, _password = embedded.administrator(tmp_path)
    user.set_password("chosen by a person")
    user.save()
    assert embedded.administrator(tmp_path) == (user, None)


@pytest.mark.django_db
def test_an_installation_with_an_administrator_gets_no_other(tmp_path: Path) -> None:
    somebody = User.objects.create_superuser("grace", password="hopper-1906")
    assert embedded.administrator(tmp_path) == (somebody, None)
    assert not (tmp_path / "admin-password").exists()


def test_a_log_file_gets_one_line_a_step_and_one_for_each_news() -> None:
    out = io.StringIO()
    terminal = Terminal(out)
    for percent in (10, 20):
        terminal.working("Start vLLM", "Loading the weights", percent)
    terminal.working("Start vLLM", "Warming up", 90)
    terminal.rest()
    terminal.done("Start vLLM", 41.26)
    assert out.getvalue().splitlines() == [
        "  · Start vLLM: Loading the weights",
        "  · Start vLLM: Warming up",
        f"  ✓ {'Start vLLM':<52} {41.3:7.1f} s",
    ]


@pytest.mark.parametrize(("columns", "shown"), [
    (80, "  · Start vLLM: Loading the weights  ━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  25 %  100 s"),
    (60, "  · Start vLLM: Loading the weights  ━━╌╌╌╌╌╌╌  25 %  100 s"),
    (40, "  · Start vLLM: Loading t…  25 %  100 s"),
])
def test_a_narrow_terminal_still_shows_percent_and_seconds(columns: int, shown: str) -> None:
    assert terminal._line("  · Start vLLM: Loading the weights", 25, 100.0, columns - 1) == shown
    assert len(shown) < columns


# --- bin/setup --------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What bin/setup reads of the project, with an environment that looks installed."""
    for name in ("requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "bin" / "setup", tmp_path / "bin")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    program(tmp_path / ".venv" / "bin" / "python", f'exec {sys.executable} "$@"')
    shutil.copy(ROOT / "requirements.lock", tmp_path / ".venv")
    return tmp_path


def program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/bash\n{line}\n")
    path.chmod(0o755)


def setup(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
    env = {**{name: value for name, value in os.environ.items() if name != "QUARTERDECK_VAR"}, **env}
    command = ["bash", "bin/setup"]
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)


def test_setup_has_nothing_to_do_the_second_time(checkout: Path) -> None:
    done = setup(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stat.S_IMODE((checkout / "var").stat().st_mode) == 0o700


def test_setup_names_a_python_that_is_too_old(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    tools = checkout / "tools"
    tools.mkdir()
    for tool in ("bash", "cmp", "dirname", "id"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    program(tools / "python3", "[ $1 = --version ] && echo Python 3.9.2")
    refused = setup(checkout, PATH=str(tools), PYTHON="")
    assert refused.returncode == 2
    assert "needs Python 3.11 or newer, and this machine has Python 3.9.2. Install one" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_setup_names_a_var_it_cannot_make(checkout: Path) -> None:
    (checkout / "var").write_text("a file where a directory should be")
    refused = setup(checkout)
    assert refused.returncode == 2
    assert "that is not a directory" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_setup_compiles_a_translation_that_is_newer(checkout: Path) -> None:
    (checkout / "controlplane").mkdir()
    shutil.copy(ROOT / "controlplane" / "translations.py", checkout / "controlplane")
    source = checkout / "locale" / "de" / "LC_MESSAGES" / "django.po"
    source.parent.mkdir(parents=True)
    header = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n'
    source.write_text(f'{header}\nmsgid "Nodes"\nmsgstr "Knoten"\n')
    assert setup(checkout).returncode == 0
    assert b"Knoten" in source.with_suffix(".mo").read_bytes()
