"""Alerts: told when something lasts, over when it is well for a while, delivered until it arrives, never flapping."""

from __future__ import annotations

import hashlib
import hmac
import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
from django.core import mail
from django.test import Client
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from controlplane.problems import Problem
from deployments.alerts import delivery, look
from deployments.alerts.models import Alert, AlertSettings, Delivery
from deployments.alerts.rules import RULES, Kind, Level, Rule, Status, of_figure, step
from deployments.models import Deployment
from nodes.models import Cluster, Node
from nodes.telemetry import store
from tests.test_pages import signed_in, text_of

NOW = 1_790_000_000.0
RULE = Rule(Kind.CACHE_FULL, "full", "%(name)s", hold=60, clear=30, threshold=90)
LEVELS = st.lists(st.tuples(st.sampled_from(list(Level)), st.floats(0.5, 40)), max_size=60)


def play(rule: Rule, said: list[tuple[Level, float]]) -> list[tuple[float, bool]]:
    """The changes over a story of levels, each for so many seconds, looked at when it begins."""
    status, now, changes = Status(), 0.0, []
    for level, seconds in said:
        status, change = step(rule, status, level, now)
        if change is not None:
            changes.append((now, change))
        now += seconds
    return changes


# --- the rules ---


def test_it_is_told_once_it_has_lasted_and_over_once_it_was_well_for_a_while() -> None:
    bad, good = (Level.BAD, 10.0), (Level.GOOD, 10.0)
    assert play(RULE, [bad] * 6) == []
    assert play(RULE, [bad] * 7) == [(60, True)]
    assert play(RULE, [bad] * 7 + [good] * 4) == [(60, True), (100, False)]


def test_a_moment_of_health_begins_the_wait_anew() -> None:
    assert play(RULE, [(Level.BAD, 50.0), (Level.GOOD, 1.0), (Level.BAD, 50.0), (Level.BAD, 5.0)]) == []


def test_what_is_not_known_neither_begins_nor_ends_an_alert() -> None:
    firing = [(Level.BAD, 61.0), (Level.BAD, 1.0)]
    assert play(RULE, [(Level.UNKNOWN, 1000.0)] * 5) == []
    assert play(RULE, firing + [(Level.UNKNOWN, 1000.0)] * 5) == [(61, True)]


@given(LEVELS)
def test_whatever_happens_beginnings_and_ends_take_turns_and_keep_apart(said: list[tuple[Level, float]]) -> None:
    changes = play(RULE, said)
    assert [change for _, change in changes] == [at % 2 == 0 for at in range(len(changes))]
    for (before, change), (after, _) in pairwise(changes):
        assert after - before >= (RULE.clear if change else RULE.hold)


def test_between_the_thresholds_of_a_figure_nothing_changes() -> None:
    assert [of_figure(RULE, percent) for percent in (90, 89.9, 85, 84.9, None)] == [
        Level.BAD, Level.UNKNOWN, Level.UNKNOWN, Level.GOOD, Level.UNKNOWN]


def test_a_rule_that_is_switched_off_is_over_at_once() -> None:
    off = RULE.changed({"on": False})
    assert step(off, Status(True), Level.BAD, 0) == (Status(), False)
    assert step(off, Status(), Level.BAD, 0) == (Status(), None)


# --- looking ---

pytestmark = pytest.mark.django_db


@pytest.fixture
def node() -> Node:
    facts = {"gpus": [{"index": 0, "name": "H100"}, {"index": 1, "name": "H100"}]}
    return Node.objects.create(name="te1", address="10.0.0.1", user="root", state="ready", facts_json=facts)


@pytest.fixture
def settings_of_alerts() -> AlertSettings:
    made = AlertSettings.objects.create(
        webhook_url="http://127.0.0.1:9/hook", webhook_secret="s3cret", emails="a@b.example")
    made.refresh_from_db()
    return made


def say(node: Node, at: float, gpus: int = 2, disk: int = 50) -> None:
    rows = [[i, 1, 2, 3, 4, 5] for i in range(gpus)]
    sample = {"t": at, "cpu": 1, "mem": [1, 2], "disk": [disk, 100], "gpus": rows}
    store.add([store.Entry(node.pk, "s", json.dumps(sample))])


def firing() -> set[tuple[str, str]]:
    return {(alert.kind, alert.name) for alert in Alert.objects.filter(state="firing")}


@pytest.mark.valkey
def test_a_lost_gpu_and_a_full_disk(node: Node) -> None:
    for second in range(0, 100, 5):
        say(node, NOW + second, gpus=1, disk=95)
        look.look(NOW + second)
    assert firing() == {("gpu_lost", "te1"), ("disk_full", "te1")}
    assert {str(alert) for alert in Alert.objects.all()} == {
        "te1 shows 1 / 2 GPUs of those it had.", "The disk of te1 is 95 % full."}
    for second in range(100, 200, 5):
        say(node, NOW + second)
        look.look(NOW + second)
    assert firing() == set()
    assert Alert.objects.filter(state="over").count() == 2


@pytest.mark.valkey
def test_a_node_that_is_away_is_one_alert_not_three(node: Node) -> None:
    say(node, NOW - 1000, gpus=0, disk=99)
    Node.objects.update(state="unreachable")
    for second in range(0, 400, 5):
        look.look(NOW + second)
    assert firing() == {("node_unreachable", "te1")}
    node.delete()
    look.look(NOW + 400)
    assert firing() == set()


@pytest.mark.valkey
def test_a_deployment_that_failed_and_a_cache_that_is_full_for_five_minutes(node: Node) -> None:
    cluster = Cluster.objects.create(name="te1", head=node)
    made = Deployment.objects.create(name="m", model="demo", cluster=cluster, port=1, state="ready")
    copy = made.replicas.create(number=1, node=node, port=1, state="ready")
    for second in range(0, 310, 5):
        store.add([store.Entry(copy.pk, "r", json.dumps({"t": NOW + second, "kv": 0.99}))])
        look.look(NOW + second)
        assert bool(firing()) == (second >= 300)
    Deployment.objects.update(state="failed", reason="The model server ended.\nStart it again.")
    look.look(NOW + 310)
    assert firing() == {("cache_full", "m"), ("deployment_failed", "m")}
    assert str(Alert.objects.get(kind="deployment_failed")) == "m failed: The model server ended."


@pytest.mark.valkey
def test_what_redis_forgets_only_delays(node: Node) -> None:
    from controlplane import streams

    Node.objects.update(state="unreachable")
    look.look(NOW)
    streams.client().flushall()
    look.look(NOW + 40)
    assert firing() == set()
    look.look(NOW + 75)
    assert firing() == {("node_unreachable", "te1")}


# --- delivering ---


def deliver(status: int = 200) -> list[httpx.Request]:
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status)

    delivery.send_due(httpx.MockTransport(handle))
    return asked


@pytest.mark.valkey
def test_beginning_and_end_are_told_to_the_webhook_and_by_mail(
    node: Node, settings_of_alerts: AlertSettings, settings: Any
) -> None:
    settings.EMAIL_HOST = "mail.example"
    Node.objects.update(state="unreachable")
    for second in (0, 40):
        look.look(NOW + second)
    (asked,) = deliver()
    said = json.loads(asked.content)
    assert (said["event"], said["rule"], said["text"]) == ("firing", "node_unreachable", "te1 cannot be reached.")
    digest = hmac.new(b"s3cret", asked.content, hashlib.sha256).hexdigest()
    assert asked.headers["x-quarterdeck-signature"] == f"sha256={digest}"
    assert [(one.subject, one.to) for one in mail.outbox] == [
        ("[Quarterdeck] A node is unreachable te1", ["a@b.example"])]
    assert deliver() == []
    Node.objects.update(state="ready")
    for second in (100, 140):
        look.look(NOW + second)
    (asked,) = deliver()
    assert json.loads(asked.content)["event"] == "resolved"


def test_what_does_not_arrive_is_tried_again_later_and_then_given_up(settings_of_alerts: AlertSettings) -> None:
    made = Delivery.objects.create(channel="webhook", what="test")
    pauses = []
    for _ in range(delivery.ATTEMPTS):
        began = timezone.now()
        assert len(deliver(503)) == 1
        assert deliver(503) == []
        made.refresh_from_db()
        pauses.append(None if made.next_at is None else round((made.next_at - began).total_seconds()))
        Delivery.objects.filter(next_at__isnull=False).update(next_at=timezone.now())
    assert pauses == [15, 30, 60, 120, 240, 480, 960, None]
    assert made.error == "The message was not delivered: the webhook answered with status 503."
    assert deliver() == []


def test_no_mail_without_a_mail_server(settings_of_alerts: AlertSettings) -> None:
    with pytest.raises(Problem, match="No mail server is set"):
        delivery.send(Delivery(channel="email", what="test"), settings_of_alerts)


@pytest.mark.parametrize("url", [
    "file:///etc/passwd", "gopher://10.0.0.1/", "http://", "http://169.254.169.254/latest/meta-data",
    "http://user:pass@10.0.0.1/", "http://[fe80::1]/", "http://0.0.0.0/", "http://[::ffff:169.254.169.254]/",
    "http://10.0.0.1:99999/", "http://224.0.0.1/",
])  # fmt: skip
def test_addresses_that_no_message_may_go_to(url: str) -> None:
    with pytest.raises(Problem):
        delivery.refuse_address(url)


def test_a_redirect_is_not_followed(settings_of_alerts: AlertSettings) -> None:
    asked: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"Location": "http://169.254.169.254/"})

    with pytest.raises(Problem, match="status 302"):
        delivery.send(Delivery(channel="webhook", what="test"), settings_of_alerts, httpx.MockTransport(handle))
    assert asked == ["http://127.0.0.1:9/hook"]


# --- pages ---


def fields(**changes: Any) -> dict[str, Any]:
    rules = {f"{kind}-{name}": value for kind, rule in RULES.items()
             for name, value in (("on", "on"), ("hold", rule.hold), ("threshold", rule.threshold)) if value is not None}
    return {"webhook_url": "", "webhook_secret": "", "emails": "", **rules, **changes}


def test_the_settings_are_an_admins_and_secrets_are_not_shown_again() -> None:
    admin = signed_in("admin")
    changes = {"webhook_url": "http://127.0.0.1:9/hook-key", "webhook_secret": "s3cret",
               "emails": "a@b.example,c@d.example", "disk_full-threshold": 80}
    assert admin.post("/alerts/settings/", fields(**changes)).status_code == 302
    stored = AlertSettings.current()
    assert stored.webhook_url.reveal() == "http://127.0.0.1:9/hook-key"
    assert stored.addresses == ["a@b.example", "c@d.example"]
    assert stored.rule(Kind.DISK_FULL).threshold == 80
    page = text_of(admin.get("/alerts/settings/"))
    assert "hook-key" not in page
    assert "s3cret" not in page
    admin.post("/alerts/settings/", fields())
    assert AlertSettings.current().webhook_url.reveal() == "http://127.0.0.1:9/hook-key"
    admin.post("/alerts/settings/", fields(no_webhook="on"))
    assert not AlertSettings.current().webhook_url
    assert signed_in("operator").get("/alerts/settings/").status_code == 403


@pytest.mark.parametrize("changes", [{"webhook_url": "ftp://x"}, {"emails": "nobody"}, {"disk_full-threshold": 5}])
def test_settings_that_cannot_be_are_told(changes: dict[str, Any]) -> None:
    assert signed_in("admin").post("/alerts/settings/", fields(**changes)).status_code == 409
    assert AlertSettings.objects.count() == 0


def test_a_test_says_what_came_of_it(settings_of_alerts: AlertSettings) -> None:
    page = text_of(signed_in("admin").post("/alerts/test/", follow=True))
    assert "the webhook does not answer" in page
    assert "No mail server is set" in page


def test_a_test_without_a_channel_is_refused() -> None:
    assert signed_in("admin").post("/alerts/test/").status_code == 409


def test_the_bell_and_the_overview_show_what_is_wrong(node: Node) -> None:
    Alert.objects.create(kind="disk_full", about=node.subject, name="<b>te1", value="95")
    viewer: Client = signed_in("viewer")
    for address in ("/", "/alerts/", "/alerts/bell/"):
        page = text_of(viewer.get(address))
        assert 'aria-label="1 alert"' in page
        assert "<b>te1" not in page.replace("\\u003Cb", "")
    assert "The disk of &lt;b&gt;te1 is 95 % full." in text_of(viewer.get("/"))
