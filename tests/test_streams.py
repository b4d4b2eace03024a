"""Streams on a real Valkey: an offset is the identity of a byte."""

from __future__ import annotations

import asyncio

import pytest
import redis

from controlplane import streams

pytestmark = pytest.mark.valkey


def contents(key: str, after: int = 0) -> bytes:
    return b"".join(chunk.data for chunk in streams.read(key, after))


def test_bytes_are_appended_where_the_stream_ends() -> None:
    assert streams.append("log:a", 0, b"hello ") == 6
    assert streams.append("log:a", 6, b"world") == 11
    assert contents("log:a") == b"hello world"
    assert streams.end("log:a") == 11


@pytest.mark.parametrize("start", [0, 3, 7])
def test_an_append_that_overlaps_or_leaves_a_gap_is_refused(start: int) -> None:
    streams.append("log:a", 0, b"hello ")
    assert streams.append("log:a", start, b"again") == 6
    assert contents("log:a") == b"hello "


def test_two_readers_of_one_log_append_each_byte_once() -> None:
    written = bytes(range(256)) * 40
    positions = [0, 0]
    for turn in range(2000):
        reader = turn % 2
        size = 1 + (turn * 7) % 97
        at = positions[reader]
        positions[reader] = streams.append("log:a", at, written[at : at + size])
    assert contents("log:a") == written


def test_reading_resumes_in_the_middle_of_an_entry() -> None:
    streams.append("log:a", 0, b"0123456789")
    assert contents("log:a", 4) == b"456789"


def test_old_bytes_are_trimmed_by_size() -> None:
    for n in range(100):
        streams.append("log:a", n * 100, b"x" * 100, keep=1000)
    first = next(iter(streams.read("log:a", 0)))
    assert 10000 - 1200 <= first.start <= 10000 - 900


def test_an_emptied_stream_takes_up_again_anywhere() -> None:
    assert streams.append("log:a", 500, b"later") == 505
    assert next(iter(streams.read("log:a", 0)))[:2] == (500, b"later")


async def test_following_delivers_what_is_there_and_what_comes() -> None:
    streams.append("log:a", 0, b"early ")
    async with streams.async_client() as connection:
        following = streams.follow(connection, "log:a", 2, block_ms=100)
        assert (await anext(following))[:2] == (2, b"rly ")
        assert (await anext(following)).data == b""
        await asyncio.to_thread(streams.append, "log:a", 6, b"late")
        assert (await anext(following))[:2] == (6, b"late")
        await following.aclose()


def test_a_server_that_is_away_is_an_error_and_not_silence(settings: object) -> None:
    streams.client.cache_clear()
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"  # type: ignore[attr-defined]
    with pytest.raises(redis.ConnectionError):
        streams.append("log:a", 0, b"x")
