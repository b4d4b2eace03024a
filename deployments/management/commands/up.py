"""``manage.py up``, behind ``bin/up``: start all of Quarterdeck on this machine, and the demo if asked."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandParser
from django.utils import translation
from django.utils.translation import gettext as _

from controlplane import embedded
from controlplane.embedded import Refused
from controlplane.problems import Problem
from controlplane.processes import Keeper, Program, Supervisor, last_lines
from controlplane.terminal import Terminal, wait_until
from deployments import demo

#: Restarts of a process during the start after which it is not going to come up.
HOPELESS = 3


class Command(BaseCommand):
    help = "Start Quarterdeck on this machine and keep it running until Ctrl-C."
    requires_system_checks: list[str] = []  # embedded.check_settings() asks for those that matter here

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> CommandParser:
        """Django's own options work, but nobody who asks for help here is looking for them."""
        usage = "bin/up [--demo] [--once] [--host HOST] [--port PORT]"
        return super().create_parser(prog_name, subcommand, usage=usage, **options)

    def add_arguments(self, parser: CommandParser) -> None:
        option = parser.add_argument
        option("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
        option("--port", type=_port, default=8000, help="0 takes any free one (default: %(default)s)")
        option("--demo", action="store_true", help="serve a small model here and send it one prompt")
        option("--once", action="store_true", help="the demo, then stop everything and print a line of JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        os.umask(0o077)  # what lies in var/ is nobody else's business
        translation.activate(_language())
        up = Up(options["host"], options["port"], options["demo"] or options["once"], options["once"])
        sys.exit(up.run())


class Up:
    """One run of ``bin/up``, told in the terminal."""

    def __init__(self, host: str, port: int, with_demo: bool, once: bool) -> None:
        self.host, self.port = host, port
        self.with_demo, self.once = with_demo, once
        self.var = Path(settings.VAR_DIR)
        self.terminal = Terminal()
        self.began, self.installed = _clock()
        self.seconds = {"setup": round(self.installed - self.began, 1)}
        self.result: dict[str, Any] = {"reply": None, "model": None, "seconds": self.seconds, "ok": False}

    def run(self) -> int:
        """The exit status: 0 after Ctrl-C or a demo that worked, 1 for one that did not, 2 when refused."""
        try:
            status = self._run()
        except KeyboardInterrupt:
            status = int(self.once)
            self.result["error"] = _("Stopped before the end.")
        except Problem as problem:
            self.terminal.rest()
            print(problem, file=sys.stderr, flush=True)
            status = 2 if isinstance(problem, Refused) else 1
            self.result["error"] = str(problem)
        if self.once:
            self.seconds["total"] = round(time.time() - self.began, 1)
            print(json.dumps(self.result, ensure_ascii=False), flush=True)
        return status

    def _run(self) -> int:
        with ExitStack() as stack:
            embedded.check_settings()
            self.port = embedded.free_port(self.host, self.port)
            self.url = embedded.url(self.host, self.port)
            stack.enter_context(embedded.only_one(self.var, self.url))
            self.terminal.line("Quarterdeck\n")
            self.terminal.done(_("Packages"), self.installed - self.began)
            stack.callback(self._stopped)
            user, password = self._start(stack)
            self.seconds["start"] = round(time.time() - self.installed, 1)
            self._welcome(user, password)
            if self.with_demo:
                stack.callback(self._shut_down_demo)
                self._demo(user)
            if not self.once:
                self.terminal.line(_("Quarterdeck keeps running; Ctrl-C stops it."))
                threading.Event().wait()
        return 0 if self.result["ok"] or not self.once else 1

    def _start(self, stack: ExitStack) -> tuple[User, str | None]:
        """Start everything; on the way out of ``stack`` the control plane stops first, then its server."""
        server = stack.enter_context(Supervisor(self._ended))
        if settings.EMBEDDED_VALKEY:
            server.start(embedded.valkey(self.var))
        with self.terminal.step(_("Database")):
            embedded.migrate()
        with self.terminal.step(_("Redis protocol (Valkey)")):
            self._wait_for_redis(server)
        with self.terminal.step(_("Web, worker and watch")):
            control_plane = stack.enter_context(Supervisor(self._ended))
            for program in embedded.control_plane(self.var, self.host, self.port):
                control_plane.start(program)
            found = embedded.administrator(self.var)
            self._wait_for_web(control_plane.keepers["web"])
        return found

    def _wait_for_redis(self, server: Supervisor) -> None:
        keeper = server.keepers.get("valkey")
        if wait_until(lambda: embedded.redis_answers() or _hopeless(keeper), 30) and not _hopeless(keeper):
            return
        if keeper is None:
            raise Problem(
                _("No Redis or Valkey answers at %s.") % _without_password(settings.REDIS_URL),
                _("Check REDIS_URL; without it the bundled server is used."),
            )
        raise _did_not_start(keeper.program)

    def _wait_for_web(self, keeper: Keeper) -> None:
        if not wait_until(lambda: _answers(self.url) or _hopeless(keeper), 60) or _hopeless(keeper):
            raise _did_not_start(keeper.program)

    def _ended(self, program: Program, status: int, delay: float) -> None:
        said = {"name": program.name, "how": _how(status), "log": program.log, "delay": delay}
        text = _("%(name)s ended (%(how)s; see %(log)s). It starts again in %(delay).1f s.") % said
        self.terminal.line(f"  ! {text}")

    def _welcome(self, user: User, password: str | None) -> None:
        self.terminal.line(f"\n  {self.url}")
        named = {"user": user.username, "password": password, "file": self.var / "admin-password"}
        how = _("Sign in as %(user)s with the password you chose.") % named
        if password:
            how = _("Sign in as %(user)s with the password %(password)s (kept in %(file)s).") % named
        self.terminal.line(f"  {how}\n")

    def _demo(self, user: User) -> None:
        try:
            outcome = demo.play(user, self.url, self.terminal)
        except Problem as problem:
            if self.once:
                raise
            self.terminal.rest()
            self.terminal.line(f"\n  {problem}\n")
            return
        self.seconds.update(outcome.seconds)
        self.seconds["total"] = round(time.time() - self.began, 1)
        self.result.update(reply=outcome.reply, model=outcome.model, ok=True)
        self.terminal.line("\n" + demo.told(outcome, self.url, self.seconds))

    def _shut_down_demo(self) -> None:
        self.terminal.rest()
        with self.terminal.step(_("The demo's model server and Ray are stopped")):
            demo.shut_down()

    def _stopped(self) -> None:
        self.terminal.rest()
        self.terminal.line("  " + _("Quarterdeck is stopped."))


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(_("%r is not a port: a number from 0 to 65535") % text)
    return int(text)


def _clock() -> tuple[float, float]:
    """When bin/up began and when its setup was over (Unix time); both are now without bin/up."""
    began, installed = (os.environ.get("QUARTERDECK_CLOCK") or f"{time.time()} {time.time()}").split()
    return float(began), float(installed)


def _language() -> str:
    """The terminal's language, if Quarterdeck speaks it."""
    asked = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    try:
        return translation.get_supported_language_variant(asked.partition(".")[0].replace("_", "-").lower())
    except LookupError:
        return settings.LANGUAGE_CODE


def _answers(url: str) -> bool:
    """Whether a page comes back; any status is one."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
    try:
        connection.request("GET", "/sign-in/")
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()


def _hopeless(keeper: Keeper | None) -> bool:
    return keeper is not None and keeper.restarts >= HOPELESS


def _how(status: int) -> str:
    if status < 0:
        return _("killed by %s") % signal.Signals(-status).name
    return _("exit status %d") % status


def _did_not_start(program: Program) -> Problem:
    what = _("%(name)s does not start. The end of its log:\n\n%(log)s\n") % {
        "name": program.name,
        "log": last_lines(program.log),
    }
    return Problem(what, _("The whole log is %s.") % program.log)


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
