"""A pasted list of servers: ranges, users, ports, names; each entry is judged on its own, and nothing is unbounded."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.hostlist import MOST, Bad, Row, expand, parse
from nodes.names import is_address, is_name, is_user


def rows(text: str, **otherwise: object) -> list[tuple[str, str, str, int]]:
    found = parse(text, **{"user": "root", **otherwise})  # type: ignore[arg-type]
    assert all(isinstance(row, Row) for row in found), found
    return [(row.name, row.user, row.address, row.port) for row in found if isinstance(row, Row)]


def reason(text: str, **otherwise: object) -> str:
    (found,) = parse(text, **{"user": "root", **otherwise})  # type: ignore[arg-type]
    assert isinstance(found, Bad)
    return found.why


@pytest.mark.parametrize(("text", "expected"), [
    ("te[1-4]", ["te1", "te2", "te3", "te4"]),
    ("172.18.81.[126-129]", ["172.18.81.126", "172.18.81.127", "172.18.81.128", "172.18.81.129"]),
    ("n[08-11].lab", ["n08.lab", "n09.lab", "n10.lab", "n11.lab"]),
    ("a[1,3,5-6]", ["a1", "a3", "a5", "a6"]),
    ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ("plain", ["plain"]),
    ("", [""]),
])
def test_ranges_expand_in_order(text: str, expected: list[str]) -> None:
    assert expand(text) == expected


def test_users_ports_and_names_come_from_the_entry_or_from_the_defaults() -> None:
    assert rows("te1\nops@atlas.lab:2222\ngpu = 10.0.0.7", port=2200) == [
        ("te1", "root", "te1", 2200), ("atlas", "ops", "atlas.lab", 2222), ("gpu", "root", "10.0.0.7", 2200)]


def test_names_of_a_range_go_with_the_addresses() -> None:
    assert rows("te[1-2] = 172.18.81.[126-127]") == [
        ("te1", "root", "172.18.81.126", 22), ("te2", "root", "172.18.81.127", 22)]
    assert "2 names for 3 addresses" in reason("te[1-2] = 172.18.81.[126-128]")


def test_commas_comments_and_empty_lines() -> None:
    assert [row[0] for row in rows("te1,te2, te[3,4]\n\n  # all of them\nte5 # the new one")] == [
        "te1", "te2", "te3", "te4", "te5"]


def test_addresses_of_both_families() -> None:
    assert rows("fd00::7\n[fd00::8]:2222\n10.0.0.1") == [
        ("fd00-7", "root", "fd00::7", 22), ("fd00-8", "root", "fd00::8", 2222), ("10-0-0-1", "root", "10.0.0.1", 22)]


def test_two_servers_never_get_one_name() -> None:
    assert [row[0] for row in rows("te1.a, te1.b, te1.b:2222, ops@te1.b:2222", taken=["te1"])] == [
        "te1-a", "te1-b", "te1-b-2222", "te1-b-2222-ops"]


def test_the_bad_ones_say_why_and_the_good_ones_go_on() -> None:
    found = parse("te1\nroot@172.18.81.300\nte2", user="root")
    assert [type(row) for row in found] == [Row, Bad, Row]
    assert found[1] == Bad(2, "root@172.18.81.300", "300 is not a number from 0 to 255.")


@pytest.mark.parametrize(("text", "sentence"), [
    ("a b", "neither a host name nor an IP address"),
    ("te1;id", "neither a host name nor an IP address"),
    ("-oProxyCommand=x", "cannot be a node's name"),
    ("te1:99999", "A port is a number from 1 to 65535."),
    ("te1:ssh", "A port is a number from 1 to 65535."),
    ("te1:", "A port is a number from 1 to 65535."),
    ("$(id)@te1", "is not the name of a Linux user"),
    ("@te1", "It has no user."),
    ("te[4-1]", "goes backwards"),
    ("te[a-b]", "neither a host name"),
    ("te[1-]", "is not a range"),
    ("te[]", "is not a range"),
    ("10.0.[0-1].[0-255]", "At most 256 servers at once."),
    ("te[0-999999999]", "At most 256 servers at once."),
    ("te[0-9][0-9][0-9][0-9]", "At most 256 servers at once."),
    ("new = te1", "cannot be a node's name"),
    ("te9 = te1", "exists already"),
    ("x" * 10_000, "too long"),
    ("te1\0", "neither a host name"),
    ("名", "neither a host name"),
])
def test_what_cannot_be_a_server_says_so(text: str, sentence: str) -> None:
    assert sentence in reason(text, taken=["te9"])


def test_without_any_user_it_says_so() -> None:
    assert "It has no user." in reason("te1", user="")


def test_the_same_server_twice_is_registered_once() -> None:
    found = parse("te1\nte[1-2]", user="root")
    assert [type(row) for row in found] == [Row, Bad, Row]
    assert isinstance(found[1], Bad) and "The same server as in entry 1" in found[1].why


def test_a_list_is_bounded_in_rows_and_in_time() -> None:
    began = time.monotonic()
    assert len(parse("\n".join(f"h{n}" for n in range(100_000)), user="root")) == MOST + 1
    assert len(parse("[" * 60_000, user="root")) == 1
    parse("te[1-16]x[1-16]\n" * 4_000, user="root")
    assert time.monotonic() - began < 5


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("te1.@:=[]-,09 #\n\0'$;\\名"), max_size=60) | st.text(max_size=200))
def test_whatever_is_typed_becomes_rows_that_can_be_right_or_reasons(text: str) -> None:
    found = parse(text, user="root")
    assert len(found) <= MOST + 1
    names = [row.name for row in found if isinstance(row, Row)]
    assert len(names) == len(set(names))
    for row in found:
        if isinstance(row, Row):
            assert is_name(row.name) and is_user(row.user) and is_address(row.address) and 0 < row.port < 65536
        else:
            assert row.why and len(row.typed) <= 80
