"""``manage.py gateway``: the gateway in a process of its own, from a database alone; stopped, it ends its streams."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection

from deployments.gateway import keys
from deployments.models import Usage
from tests import upstream
from tests.support.deck import ROOT
from tests.support.gateway_world import prompt
from tests.test_aliases import deployed
from tests.test_gateway import CHAT, closed_port
from tests.upstream import Asked, StandIn, stand_in

pytestmark = pytest.mark.django_db(transaction=True)


def surroundings() -> dict[str, str]:
    """An environment with the test's database and no Redis."""
    database = f"sqlite:///{connection.settings_dict['NAME']}"
    own = {"DATABASE_URL": database, "REDIS_URL": "unix:///nowhere/valkey.sock", "LOG_LEVEL": "DEBUG",
           "SECRET_KEY": settings.SECRET_KEY, "FIELD_KEY": settings.FIELD_KEY}
    return {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"} | own


@asynccontextmanager
async def alone(port: int, log: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The command; its output is in ``log``."""
    env = surroundings()
    command = [sys.executable, "manage.py", "gateway", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_it_serves_and_finishes_what_it_was_asked_when_it_is_stopped(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def in_two_parts(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, upstream.HEAD % b"text/event-stream" + upstream.chunk(upstream.token("Ada")))
        await go_on.wait()
        await server.send(writer, upstream.chunk(upstream.USAGE_EVENT + upstream.DONE) + upstream.END)

    ada = await User.objects.acreate(username="ada")
    key, plain = await sync_to_async(keys.create)(ada, "laptop")
    port, log = closed_port(), tmp_path / "log"
    async with stand_in(in_two_parts) as server, alone(port, log) as process:
        await sync_to_async(deployed)(port=server.port)
        bearer = {"Authorization": f"Bearer {plain}"}
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=bearer, timeout=30, trust_env=False
        ) as http:
            await until_it_answers(http)
            async with http.stream("POST", CHAT, json=prompt("tiny", stream=True)) as answer:
                parts = answer.aiter_bytes()
                first = await anext(parts)
                process.send_signal(signal.SIGTERM)
                await until_it_listens_no_more(port)
                go_on.set()
                rest = b"".join([part async for part in parts])
        await asyncio.to_thread(process.wait, 20)
    assert first + rest == upstream.token("Ada") + upstream.DONE
    counted = await Usage.objects.aget(key=key.pk)
    assert (counted.requests, counted.prompt_tokens, counted.ttft_count) == (1, 7, 1)
    assert plain[3:20] not in log.read_text()


#: As `manage.py gateway` does, up to where it would listen; then what that has imported.
IMPORTS = """
import sys, runpy, uvicorn
uvicorn.run = lambda *args, **options: None
sys.argv = ["manage.py", "gateway"]
runpy.run_path("manage.py", run_name="__main__")
from deployments.gateway import app, directory
directory.from_database()
print(*sys.modules)
"""
#: Each costs megabytes, and none of them has to do with a prompt.
HEAVY = {
    "aiohttp", "celery", "channels", "django_htmx", "httpx", "kombu", "ninja", "paramiko", "pydantic", "yaml",
    "controlplane.urls", "deployments.plan", "deployments.web.views", "nodes.hosts", "nodes.recipes", "nodes.tasks",
    "nodes.web.views",
}


def test_it_imports_nothing_of_pages_tasks_and_ssh() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, env=surroundings(), capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "deployments.gateway.forward" in loaded
    assert not HEAVY & loaded
    assert len(loaded) < 900  # 760 when this was written; each thousand are about 40 MiB


async def until_it_answers(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if (await http.get("/v1/models")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)


async def until_it_listens_no_more(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.05)
