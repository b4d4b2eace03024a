"""A million lines flow from a node to a page while everything between them breaks: none is lost, none comes twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.lab import Lab
from tests.lab.deck import LabDeck

pytestmark = [pytest.mark.lab, pytest.mark.sshd, pytest.mark.valkey]

LINES = 1_000_000
#: 100 bytes a line, 2,500 lines and then a breath: about 25 seconds of it.
_FLOOD = """
import sys, time
for piece in range(int(sys.argv[1]) // 2500):
    sys.stdout.write("".join(f"{piece * 2500 + n:07d}{'x' * 92}\\n" for n in range(2500)))
    sys.stdout.flush()
    time.sleep(0.05)
"""
_START = """
from nodes import hosts, logs, tasks
from nodes.models import Job, Node
from nodes.remote import job as remote_job
from nodes.remote.command import python
from django.contrib.auth.models import User
from django.test import Client
node = Node.objects.get(name="te1")
job = Job.objects.create(node=node, name="flood", state="running")
remote_job.start(hosts.shared_host(node), logs.place(job), python("python3", program, lines))
tasks.poke_watch()
client = Client()
client.force_login(User.objects.get(username="admin"))
answer = [str(job.pk), logs.place(job), client.cookies["sessionid"].value]
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(1) as lab:
        if not lab.real:
            pytest.skip("connections of one host are only broken in a lab of namespaces, which needs root")
        yield lab


@pytest.fixture(scope="module")
def deck(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Iterator[LabDeck]:
    deck = LabDeck(tmp_path_factory.mktemp("deck"))
    try:
        deck.wait_for_address()
        deck.register(*lab.hosts)
        yield deck
    finally:
        deck.stop()


class Reader:
    """A page that shows the log: comes back after every loss, and asks for the byte after the last one it has."""

    def __init__(self, address: str, job: str, cookie: str) -> None:
        self.address, self.job = address, job
        self.headers = {"Cookie": f"sessionid={cookie}"}
        self.digest, self.position, self.connections = hashlib.sha256(), 0, 0

    async def read(self, deadline: float) -> None:
        """Until the log's end. AssertionError for a byte that is missing or comes twice."""
        while True:
            assert time.monotonic() < deadline, f"at byte {self.position} of {LINES * 100}"
            try:
                url = f"{self.address.replace('http', 'ws', 1)}/ws/log/{self.job}?after={self.position}"
                async with asyncio.timeout(deadline - time.monotonic()), connect(
                    url, additional_headers=self.headers, origin=self.address, max_size=None  # type: ignore[arg-type]
                ) as socket:
                    self.connections += 1
                    if await self._take(socket):
                        return
            except (OSError, WebSocketException):
                pass
            await asyncio.sleep(0.2)

    async def _take(self, socket: ClientConnection) -> bool:
        async for frame in socket:
            if isinstance(frame, str):
                assert "skipped" not in frame, frame
                if "ended" in json.loads(frame):
                    return True
                continue
            assert int.from_bytes(frame[:8], "big") == self.position
            self.digest.update(frame[16:])
            self.position += len(frame) - 16
        return False


def kill_valkey(deck: LabDeck) -> None:
    """It writes its name over its environment; its socket tells whose it is."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{deck.var}/valkey.sock".encode() in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
                return
    raise AssertionError("there is no Valkey")


async def break_things(deck: LabDeck, lab: Lab) -> None:
    """SSH dropped ten times, Valkey and watch killed in between."""
    for number in range(10):
        await asyncio.sleep(1.5)
        await asyncio.to_thread(lab["te1"].run, "pkill -KILL -f '^sshd: [a-z]+@' || true")
        if number == 3:
            kill_valkey(deck)
        if number == 6:
            deck.kill("manage.py", "watch")


def test_a_million_lines_arrive_whole_whatever_breaks(deck: LabDeck, lab: Lab) -> None:
    job, place, cookie = deck.do(_START, program=_FLOOD, lines=str(LINES))
    reader = Reader(deck.wait_for_address(), job, cookie)

    async def read_while_it_breaks() -> None:
        await asyncio.gather(reader.read(time.monotonic() + 150), break_things(deck, lab))

    asyncio.run(read_while_it_breaks())
    assert reader.position == LINES * 100
    assert reader.connections > 1  # Valkey's end was noticed
    file: Path = lab["te1"].path(f"{place}/log")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == reader.digest.hexdigest()
