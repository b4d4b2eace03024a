"""Websockets through the real ASGI application and a real Valkey: resumed by byte, closed to strangers."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.test import Client
from pytest_django import Settings

from controlplane import streams
from controlplane.asgi import application
from controlplane.routing import websockets
from nodes import fanout
from nodes.models import Job, Node
from nodes.remote import job as remote_job
from nodes.remote.command import script
from nodes.remote.local import LocalHost
from nodes.states import JobState
from nodes.telemetry import store

pytestmark = [pytest.mark.valkey, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def cookie() -> str:
    client = Client()
    client.force_login(User.objects.create_user("mei"))
    return f"sessionid={client.cookies['sessionid'].value}"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    node = Node.objects.create(name="here", kind=Node.Kind.LOCAL, address="127.0.0.1", root=str(tmp_path))
    return Job.objects.create(node=node, name="talk", state=JobState.RUNNING)


@asynccontextmanager
async def socket(path: str, cookie: str, origin: str = "http://testserver") -> AsyncIterator[WebsocketCommunicator]:
    headers = [(b"host", b"testserver"), (b"origin", origin.encode()), (b"cookie", cookie.encode())]
    opened = WebsocketCommunicator(application, path, headers=headers)
    connected, _ = await opened.connect(timeout=5)
    assert connected
    try:
        yield opened
    finally:
        await opened.disconnect()


async def received(opened: WebsocketCommunicator, size: int, first: int = 0) -> bytes:
    """Collect ``size`` bytes of binary frames that follow each other from offset ``first`` on without a gap."""
    data = b""
    while len(data) < size:
        frame = await opened.receive_from(timeout=10)
        if isinstance(frame, bytes):
            start, _at = struct.unpack(">QQ", frame[:16])
            assert start == first + len(data)
            data += frame[16:]
    return data


async def told(opened: WebsocketCommunicator) -> dict[str, Any]:
    frame = await opened.receive_from(timeout=10)
    assert isinstance(frame, str), frame
    return dict(json.loads(frame))


def append(job: Job, start: int, data: bytes, keep: int | None = None) -> None:
    assert streams.append(streams.log_key(job.pk), start, data, keep) == start + len(data)


def end(job: Job, size: int, status: int = 0) -> None:
    assert job.move(JobState.EXITED, exit_status=status, log_size=size)


async def test_a_log_is_sent_as_it_is_and_then_as_it_grows(job: Job, cookie: str) -> None:
    await asyncio.to_thread(append, job, 0, "début\n".encode())
    async with socket(f"/ws/log/{job.pk}", cookie) as opened:
        assert await received(opened, 7) == "début\n".encode()
        await asyncio.to_thread(append, job, 7, b"more\n")
        assert await received(opened, 5, first=7) == b"more\n"


async def test_a_reload_goes_on_after_the_last_byte_that_was_drawn(job: Job, cookie: str) -> None:
    await asyncio.to_thread(append, job, 0, b"0123456789")
    async with socket(f"/ws/log/{job.pk}?after=4", cookie) as opened:
        assert await received(opened, 6, first=4) == b"456789"


@pytest.mark.parametrize("asked", ["%C2%B2", "9" * 16, "9" * 5000, "-1", "\xff"])
async def test_an_offset_that_is_none_is_as_if_none_was_given(asked: str, job: Job, cookie: str) -> None:
    await asyncio.to_thread(append, job, 0, b"0123456789")
    async with socket(f"/ws/log/{job.pk}?after={asked}", cookie) as opened:
        assert await received(opened, 10) == b"0123456789"


async def test_the_end_is_told_once_all_was_sent(job: Job, cookie: str) -> None:
    await asyncio.to_thread(append, job, 0, b"last words\n")
    async with socket(f"/ws/log/{job.pk}", cookie) as opened:
        await received(opened, 11)
        await sync_to_async(end)(job, 11, status=3)
        assert await told(opened) == {"ended": {"state": "exited", "status": 3}}


async def test_what_the_stream_no_longer_has_is_read_from_the_node(job: Job, cookie: str, tmp_path: Path) -> None:
    whole = b"".join(b"line %d\n" % n for n in range(3000))
    place = tmp_path / "jobs" / str(job.pk)
    place.mkdir(parents=True)
    (place / "log").write_bytes(whole)
    for start in range(0, len(whole), 1000):
        await asyncio.to_thread(append, job, start, whole[start : start + 1000], 5000)
    async with socket(f"/ws/log/{job.pk}?after=0", cookie) as opened:
        assert await received(opened, len(whole)) == whole


async def test_an_ended_job_without_a_stream_is_read_from_the_node(job: Job, cookie: str, tmp_path: Path) -> None:
    await sync_to_async(remote_job.start)(
        LocalHost(),
        str(tmp_path / "jobs" / str(job.pk)), script("echo kept on the node"))
    log = tmp_path / "jobs" / str(job.pk) / "log"
    while not log.exists() or log.read_bytes() != b"kept on the node\n":
        await asyncio.sleep(0.02)
    await sync_to_async(end)(job, 17)
    async with socket(f"/ws/log/{job.pk}", cookie) as opened:
        assert await received(opened, 17) == b"kept on the node\n"
        assert (await told(opened))["ended"]["status"] == 0


async def test_of_a_long_log_the_recent_part_is_sent_first(job: Job, cookie: str) -> None:
    piece = b"x" * 500_000
    for n in range(4):
        await asyncio.to_thread(append, job, n * len(piece), piece)
    async with socket(f"/ws/log/{job.pk}", cookie) as opened:
        skipped = (await told(opened))["skipped"]
        assert skipped == [0, 2_000_000 - (1 << 20)]
        assert len(await received(opened, 1 << 20, first=skipped[1])) == 1 << 20


async def test_who_cannot_keep_up_is_told_what_was_skipped_and_has_the_present(
    job: Job, cookie: str, settings: Settings
) -> None:
    settings.LOG_STREAM_BYTES = 2 << 20
    piece = b"x" * (1 << 20)
    for n in range(6):
        await asyncio.to_thread(append, job, n * len(piece), piece)
    async with socket(f"/ws/log/{job.pk}?after=10&live=1", cookie) as opened:
        assert await told(opened) == {"skipped": [10, 3 << 20]}  # the stream keeps its last 2 MiB and what they cut
        assert len(await received(opened, 3 << 20, first=3 << 20)) == 3 << 20


async def test_a_log_says_when_its_bytes_came(job: Job, cookie: str) -> None:
    before = int(time.time() * 1000)
    await asyncio.to_thread(append, job, 0, b"now\n")
    async with socket(f"/ws/log/{job.pk}", cookie) as opened:
        frame = await opened.receive_from(timeout=5)
    assert isinstance(frame, bytes)
    assert before <= struct.unpack(">QQ", frame[:16])[1] <= int(time.time() * 1000)


async def test_of_an_archived_log_it_is_known_when_its_bytes_came(job: Job, cookie: str) -> None:
    kept = {"start": 0, "end": 8, "data": gzip.compress(b"one\ntwo\n"), "times": [[0, 111], [4, 222]]}
    await sync_to_async(job.archive.create)(**kept)
    await sync_to_async(end)(job, 8)
    async with socket(f"/ws/log/{job.pk}", cookie) as opened:
        assert await told(opened) == {"times": [[0, 111], [4, 222]]}
        assert await received(opened, 8) == b"one\ntwo\n"


async def test_many_readers_share_one_and_a_slow_one_misses_nothing(
    job: Job, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "MAILBOX_BYTES", 64)
    key = streams.log_key(job.pk)
    async with streams.async_client() as connection:
        quick, slow = (fanout.follow(connection, key, 0, 0.2) for _ in range(2))
        for following in (quick, slow):
            assert not (await anext(following)).data  # both wait
        written = b""
        for n in range(20):
            piece = b"%03d" % n * 10
            await asyncio.to_thread(append, job, len(written), piece)
            written += piece
            async with asyncio.timeout(5):
                while (await anext(quick)).end < len(written):
                    pass
        seen = b""
        async with asyncio.timeout(5):
            while len(seen) < len(written):
                seen += (await anext(slow)).data
        assert seen == written
        assert len(fanout._readers[asyncio.get_running_loop()]) == 1
        await quick.aclose()
        await slow.aclose()
    assert not fanout._readers[asyncio.get_running_loop()]


async def test_the_newest_samples_come_first_and_then_what_is_new(job: Job, cookie: str) -> None:
    one = job.node_id
    await asyncio.to_thread(measured, (one, "s", 1), (one, "w", []), (7, "e", 3))
    async with socket("/ws/telemetry", cookie) as whole, socket(f"/ws/telemetry?of=s{one}", cookie) as part:
        assert await told(whole) == {"s": {str(one): 1}, "w": {str(one): []}, "e": {"7": 3}, "r": {}, "skipped": 0}
        assert (await told(part))["s"] == {str(one): 1}
        await asyncio.sleep(0.1)  # the hub's first read of Redis has no answer to wait for
        await asyncio.to_thread(measured, (one, "s", 2), (7, "e", 4))
        assert await told(whole) == {"s": {str(one): 2}, "w": {}, "e": {"7": 4}, "r": {}, "skipped": 0}
        assert await told(part) == {"s": {str(one): 2}, "w": {}, "e": {}, "r": {}, "skipped": 0}


def measured(*entries: tuple[int, str, Any]) -> None:
    store.add(store.Entry(number, kind, json.dumps(value)) for number, kind, value in entries)


async def test_a_page_that_is_slow_is_sent_the_newest_and_told_what_it_missed(job: Job, cookie: str) -> None:
    await asyncio.to_thread(measured, (job.node_id, "s", 1))
    async with socket("/ws/telemetry", cookie) as opened:
        assert (await told(opened))["s"] == {str(job.node_id): 1}
        await asyncio.sleep(0.1)
        for value in (2, 3, 4):
            await asyncio.to_thread(measured, (job.node_id, "s", value))
        assert await told(opened) == {"s": {str(job.node_id): 4}, "w": {}, "e": {}, "r": {}, "skipped": 2}


async def test_a_change_is_poked_to_every_page(job: Job, cookie: str) -> None:
    async with socket("/ws/pokes", cookie) as one, socket("/ws/pokes", cookie) as other:
        await asyncio.sleep(0.2)  # a subscription has no answer to wait for
        await sync_to_async(end)(job, 0)
        for page in (one, other):
            assert await page.receive_json_from(timeout=5) == {"changed": f"job:{job.pk}"}


@pytest.mark.parametrize("path", ["/ws/pokes", "/ws/telemetry", "/ws/log/00000000-0000-0000-0000-000000000000"])
async def test_a_stranger_gets_nothing(path: str, valkey: str) -> None:
    async with socket(path, "") as opened:
        closing = await opened.receive_output(timeout=5)
        assert closing == {"type": "websocket.close", "code": 4401}


async def test_a_page_of_another_origin_gets_no_socket(job: Job, cookie: str) -> None:
    headers = [(b"host", b"testserver"), (b"origin", b"http://elsewhere.example"), (b"cookie", cookie.encode())]
    opened = WebsocketCommunicator(application, "/ws/pokes", headers=headers)
    connected, _ = await opened.connect(timeout=5)
    assert not connected


async def test_a_job_that_is_not_there_closes_the_socket(cookie: str, valkey: str) -> None:
    async with socket("/ws/log/00000000-0000-0000-0000-000000000000", cookie) as opened:
        assert (await opened.receive_output(timeout=5))["code"] == 4404


async def test_a_user_with_very_many_websockets_is_told_to_try_later(
    cookie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websockets.inner.inner.inner.inner, "_most", 2)  # within: same origin, cookie, session, user
    async with socket("/ws/pokes", cookie), socket("/ws/pokes", cookie) as second:
        async with socket("/ws/pokes", cookie) as third:
            assert (await third.receive_output(5))["code"] == 1013
        await second.disconnect()
        async with socket("/ws/pokes", cookie) as fourth:
            assert await fourth.receive_nothing(0.1)
