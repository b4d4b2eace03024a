"""What nodes measure: believed only in its shape, written together, kept for a month in fewer and fewer rows."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from nodes.models import Node, Rollup
from nodes.telemetry import history, store
from nodes.telemetry.filing import Filing
from nodes.telemetry.sample import clean, clean_holders, mean, thinned

NOW = 1_790_000_000.0
SAID = {"t": NOW, "cpu": 12.5, "mem": [1, 4], "disk": [5, 10], "gpus": [[0, 100, 200, 50, 60, 70.5]]}


@pytest.fixture
def node(db: None) -> Node:
    return Node.objects.create(name="te1", address="10.0.0.1", user="root", state="ready")


def sample(at: float, cpu: float = 10, used: float = 100) -> dict[str, Any]:
    return {"t": at, "cpu": cpu, "mem": [1, 4], "disk": [5, 10], "gpus": [[0, used, 200, 50, 60, 70]]}


# --- the shape ---


def test_a_sample_is_taken_as_it_is() -> None:
    assert clean(SAID, NOW) == SAID


@pytest.mark.parametrize("said", [None, 7, "x", [], [SAID]])
def test_what_is_no_sample_is_dropped(said: Any) -> None:
    assert clean(said, NOW) is None


def test_of_nonsense_within_a_sample_nothing_goes_on() -> None:
    said = {"t": "<b>", "cpu": float("nan"), "mem": ["1", None], "disk": [1], "x": "y" * 10_000,
            "gpus": [[0, 1], "gpu", [None] * 6, [1, "2", 3, None, True, float("inf")]] + [[2, 1, 1, 1, 1, 1]] * 1000}
    taken = clean(said, NOW)
    assert taken is not None
    assert {name: taken[name] for name in ("t", "cpu", "mem", "disk")} == {
        "t": NOW, "cpu": None, "mem": [None, None], "disk": [None, None]}
    assert taken["gpus"][0] == [1, None, 3, None, None, None]
    assert len(taken["gpus"]) <= 64
    assert "x" not in taken


def test_a_clock_that_is_wrong_is_not_followed() -> None:
    taken = clean({**SAID, "t": NOW - 3600}, NOW)
    assert taken is not None
    assert taken["t"] == NOW


def test_holders_are_rows_of_six_with_short_words() -> None:
    rows = clean_holders([[0, 41, 512, "alice", "python " + "x" * 500, ""], [1, 2], None])
    assert rows == [[0, 41, 512, "alice", ("python " + "x" * 500)[:80], ""]]
    assert clean_holders("no") == []


def test_a_mean_leaves_out_what_is_not_known_and_keeps_gpus_apart() -> None:
    one, other = sample(NOW, cpu=10, used=100), sample(NOW + 1, cpu=20, used=200)
    other["gpus"].append([1, 8, 9, None, None, None])
    one["cpu"] = None
    assert mean([one, other]) == {
        "t": NOW, "cpu": 20, "mem": [1, 4], "disk": [5, 10],
        "gpus": [[0, 150, 200, 50, 60, 70], [1, 8, 9, None, None, None]]}


def test_the_mean_of_small_figures_keeps_what_they_say() -> None:
    """A tenth of a second is much between two tokens, and a tenth of a KV cache as well."""
    one, other = ({"t": NOW, "kv": kv, "itl50": itl, "load": 30.0} for kv, itl in ((0.37, 0.021), (0.38, 0.023)))
    assert mean([one, other]) == {"t": NOW, "kv": 0.375, "itl50": 0.022, "load": 30.0}


def test_thinned_samples_keep_their_gap() -> None:
    kept = thinned([sample(NOW + second) for second in (0, 1, 2, 3, 4, 20, 21)], 5)
    assert [one["t"] for one in kept] == [NOW, NOW + 20]


# --- writing together ---


@pytest.mark.valkey
def test_what_many_nodes_say_is_written_in_one_go() -> None:
    filing = Filing()
    for number in (1, 2):
        filing.add_sample(number, {**SAID, "t": time.time()})
    filing.add_holders(2, [[0, 41, 512, "alice", "python", ""]])
    filing.add_sample(3, "nonsense")
    filing.flush()
    assert set(store.newest_of_nodes([1, 2, 3])) == {1, 2}
    assert store.holders() == {2: [[0, 41, 512, "alice", "python", ""]]}


def test_samples_wait_while_redis_is_away(settings: Any, valkey_server: Any, valkey_socket: Any) -> None:
    from controlplane import streams

    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    filing = Filing()
    filing.add_sample(77, SAID)
    filing.flush()
    settings.REDIS_URL = f"unix://{valkey_socket}"
    streams.client.cache_clear()
    filing.flush()
    assert set(store.newest_of_nodes([77])) == {77}
    streams.client().flushall()


# --- the longer history ---


def fill(node: Node, seconds: list[float]) -> None:
    """Samples at these seconds before now, under the times that they came at."""
    from controlplane import streams

    for second in seconds:
        streams.client().xadd(store.node_key(node.pk), {"s": json.dumps(sample(second))}, id=f"{int(second * 1000)}-0")


@pytest.mark.valkey
def test_minutes_are_kept_once_however_often_it_is_said(node: Node) -> None:
    fill(node, [NOW - 200 + second for second in range(0, 190, 10)])
    history.roll_up(NOW)
    before = list(Rollup.objects.values_list("at", flat=True))
    history.roll_up(NOW)
    assert before == list(Rollup.objects.values_list("at", flat=True))
    assert all(at % 60 == 0 and at + 60 <= NOW - history.LATE for at in before)
    assert len(before) == 3


@pytest.mark.valkey
def test_after_a_pause_it_goes_on_where_it_ended(node: Node) -> None:
    fill(node, [NOW - 3000 + second for second in range(0, 3000, 20)])
    history.roll_up(NOW - 2000)
    early = Rollup.objects.count()
    history.roll_up(NOW)
    minutes = list(Rollup.objects.filter(step=60).order_by("at").values_list("at", flat=True))
    assert early < len(minutes)
    assert {later - sooner for sooner, later in pairwise(minutes)} == {60}


@pytest.mark.valkey
def test_what_is_not_there_any_more_is_forgotten(node: Node) -> None:
    held = json.dumps([[0, 1, 2, "alice", "python", ""]])
    store.add([store.Entry(node.pk, "w", held), store.Entry(99, "w", held), store.Entry(99, "e", json.dumps({"t": 1}))])
    history.roll_up(NOW)
    assert set(store.holders()) == {node.pk}
    assert store.others() == {}


@pytest.mark.valkey
def test_quarters_follow_and_what_is_old_goes(node: Node) -> None:
    start = int(NOW) // 900 * 900
    rows = [Rollup(source=f"node:{node.pk}", step=60, at=at, data=sample(at)) for at in range(start - 3600, start, 60)]
    rows.append(Rollup(source="node:99", step=900, at=start - 31 * 86_400, data=sample(0)))
    rows.append(Rollup(source="node:99", step=60, at=start - 3 * 86_400, data=sample(start - 3 * 86_400)))
    Rollup.objects.bulk_create(rows)
    history.roll_up(start + 10)
    kept = Rollup.objects.filter(step=900, source=f"node:{node.pk}").order_by("at")
    assert [row.at for row in kept] == [start - 3600, start - 2700, start - 1800, start - 900]
    assert not Rollup.objects.filter(at__lt=start - 30 * 86_400).exists()
    assert not Rollup.objects.filter(step=60, at__lt=start - 2 * 86_400).exists()


@pytest.mark.valkey
def test_the_month_takes_few_rows_and_the_hour_few_points(node: Node) -> None:
    Rollup.objects.bulk_create(
        Rollup(source=f"node:{node.pk}", step=900, at=at, data=sample(at))
        for at in range(int(NOW) - 29 * 86_400, int(NOW), 900)
    )
    source = history.Source(f"node:{node.pk}", store.node_key(node.pk))
    assert 1300 < len(history.of(source, "month", NOW)["samples"]) <= 1441
    fill(node, [NOW - 3600 + second for second in range(3600)])
    assert 700 < len(history.of(source, "hour", NOW)["samples"]) <= 721


@pytest.mark.valkey
def test_charts_and_lines_are_asked_for_by_whoever_is_signed_in(node: Node) -> None:
    client = Client()
    assert client.get(f"/telemetry/node/{node.pk}/").status_code == 302
    client.force_login(User.objects.create_user("mei"))
    fill(node, [time.time() - 30])
    assert len(client.get(f"/telemetry/node/{node.pk}/").json()["samples"]) == 1
    at = int(time.time()) // 60 * 60 - 120
    Rollup.objects.create(source=f"node:{node.pk}", step=60, at=at, data=sample(at, cpu=7))
    lines = client.get(f"/telemetry/?nodes={node.pk},x,99").json()
    assert lines == {str(node.pk): {"t": [at], "cpu": [7], "gpus": {"0": [50]}}}
    for address in ("node/x/", "nothing/1/", "node/1/?span=year"):
        assert client.get(f"/telemetry/{address}").status_code == 404
