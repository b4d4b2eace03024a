"""Keys with limits, and what was used: who may set and see what, and that the sums are right."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from deployments.gateway import keys as gateway_keys
from deployments.models import ApiKey, Deployment, KeyLimits, Usage
from nodes.models import Cluster, Node

pytestmark = [pytest.mark.django_db, pytest.mark.valkey]

LIMITS = {"requests_per_minute": "60", "tokens_per_minute": "20000", "tokens_per_day": "", "concurrent": "8"}


def person(name: str, role: str) -> tuple[User, Client]:
    user = User.objects.create_user(name)
    user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(user)
    return user, client


@pytest.fixture
def mei() -> tuple[User, Client]:
    return person("mei", "operator")


@pytest.fixture
def deployment() -> Deployment:
    node = Node.objects.create(name="te1", address="te1", user="root")
    cluster = Cluster.objects.create(name="te1", head=node)
    return Deployment.objects.create(name="qwen", model="/m", cluster=cluster, port=20700, state="ready")


def today() -> date:
    return datetime.now(UTC).date()


def used(user: User, key: ApiKey | None = None, days_ago: int = 0, model: str = "qwen", **counts: int) -> Usage:
    return Usage.objects.create(day=today() - timedelta(days=days_ago), user=user, key=key, model=model, **counts)


def text_of(response: Any) -> str:
    return re.sub(r"\s+", " ", response.content.decode())


# --- keys and their limits ---


def test_a_new_key_has_the_limits_of_the_form_from_the_first_request_on(
    mei: tuple[User, Client], deployment: Deployment
) -> None:
    page = mei[1].post(reverse("keys"), {"name": "batch", **LIMITS, "only_models": ["qwen"]})
    plain = re.findall(r"data-plain-key>(qd-\w+)<", page.content.decode())[0]
    caller = gateway_keys.find(plain, gateway_keys.load(), 0)
    assert caller is not None
    allowed = caller.allowance
    assert (allowed.requests_per_minute, allowed.tokens_per_minute, allowed.concurrent) == (60, 20000, 8)
    assert allowed.tokens_per_day is None
    assert allowed.models == {"qwen"}
    assert "60 requests a minute" in text_of(page)
    assert "only qwen" in text_of(page)


def test_a_key_without_limits_has_no_row_of_them(mei: tuple[User, Client]) -> None:
    mei[1].post(reverse("keys"), {"name": "free"})
    assert ApiKey.objects.count() == 1
    assert not KeyLimits.objects.exists()


def test_limits_are_changed_and_taken_away(mei: tuple[User, Client]) -> None:
    key, _plain = gateway_keys.create(mei[0], "batch")
    address = reverse("key-edit", args=[key.pk])
    assert mei[1].post(address, {"name": "nightly", **LIMITS})["Location"] == reverse("keys")
    assert ApiKey.objects.get().name == "nightly"
    assert 'value="20000"' in text_of(mei[1].get(address))
    mei[1].post(address, {"name": "nightly"})
    assert not KeyLimits.objects.exists()


def test_a_key_ends_with_its_last_day_where_the_reader_is(mei: tuple[User, Client]) -> None:
    mei[1].cookies["tz"] = "Asia/Shanghai"
    day = today() + timedelta(days=40)
    mei[1].post(reverse("keys"), {"name": "batch", "expires": day.isoformat()})
    key = ApiKey.objects.get()
    assert key.expires_at is not None
    assert key.expires_at.astimezone(UTC).isoformat() == f"{day.isoformat()}T16:00:00+00:00"
    assert f'value="{day.isoformat()}"' in text_of(mei[1].get(reverse("key-edit", args=[key.pk])))


def test_a_key_that_has_expired_says_so_and_can_live_again(mei: tuple[User, Client]) -> None:
    key, _plain = gateway_keys.create(mei[0], "old", timezone.now() - timedelta(days=3))
    assert "expired" in text_of(mei[1].get(reverse("keys")))
    address = reverse("key-edit", args=[key.pk])
    same = (timezone.now() - timedelta(days=3, seconds=1)).date().isoformat()
    assert mei[1].post(address, {"name": "renamed", "expires": same}).status_code == 302
    mei[1].post(address, {"name": "renamed", "expires": ""})
    assert ApiKey.objects.get().expires_at is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"requests_per_minute": "0"}, "A limit is a number from 1 to 2,000,000,000; empty is no limit."),
        ({"tokens_per_day": "-5"}, "A limit is a number from 1 to 2,000,000,000; empty is no limit."),
        ({"concurrent": "99999999999999999999"}, "A limit is a number from 1 to 2,000,000,000; empty is no limit."),
        ({"tokens_per_minute": "many"}, "A limit is a number from 1 to 2,000,000,000; empty is no limit."),
        ({"expires": "2020-01-01"}, "This day is over. Choose today or a later one."),
        ({"only_models": ["nobody"]}, "There is no deployment nobody. Choose others."),
        ({"name": ""}, "Give the key a name."),
    ],
)
def test_a_limit_that_cannot_be_says_so(change: dict[str, Any], sentence: str, mei: tuple[User, Client]) -> None:
    response = mei[1].post(reverse("keys"), {"name": "batch", **LIMITS, **change})
    assert response.status_code == 409
    assert sentence in text_of(response)
    assert not ApiKey.objects.exists()


def test_a_model_that_is_gone_stays_a_choice_of_the_key_that_has_it(mei: tuple[User, Client]) -> None:
    key, _plain = gateway_keys.create(mei[0], "batch")
    KeyLimits.objects.create(key=key, only_models=["gone"])
    address = reverse("key-edit", args=[key.pk])
    assert 'value="gone"' in text_of(mei[1].get(address))
    assert mei[1].post(address, {"name": "batch", "only_models": ["gone"]}).status_code == 302


def test_nobody_changes_the_key_of_somebody_else_but_an_admin(mei: tuple[User, Client]) -> None:
    key, _plain = gateway_keys.create(mei[0], "batch")
    address = reverse("key-edit", args=[key.pk])
    assert person("other", "operator")[1].get(address).status_code == 404
    assert person("boss", "admin")[1].post(address, {"name": "seen"}).status_code == 302
    gateway_keys.revoke(key)
    assert mei[1].get(address).status_code == 409


def test_revoking_asks_with_what_it_would_stop(mei: tuple[User, Client]) -> None:
    busy, _plain = gateway_keys.create(mei[0], "busy")
    gateway_keys.create(mei[0], "idle")
    for days_ago in (0, 3, 6, 7):
        used(mei[0], busy, days_ago, requests=500)
    ApiKey.objects.filter(pk=busy.pk).update(last_used_at=timezone.now() - timedelta(minutes=2, seconds=30))
    page = text_of(mei[1].get(reverse("keys")))
    words = re.sub("<[^>]+>", "", page)
    assert re.search(r"It made 1,500 requests in the last 7 days, the last 2 min \d+ s ago\.", words)
    assert "It made no request in the last 7 days." in page


def test_the_list_shows_how_much_of_the_day_is_used(mei: tuple[User, Client]) -> None:
    key, _plain = gateway_keys.create(mei[0], "batch")
    KeyLimits.objects.create(key=key, tokens_per_day=1000)
    used(mei[0], key, prompt_tokens=200, completion_tokens=50)
    used(mei[0], key, 1, prompt_tokens=600)
    page = text_of(mei[1].get(reverse("keys")))
    assert ">250</a>" in page
    assert "25 % of the day" in page


# --- usage ---


@pytest.fixture
def counted(mei: tuple[User, Client]) -> ApiKey:
    """Two days, two models, with and without a key; and another user's."""
    key, _plain = gateway_keys.create(mei[0], "=batch")
    used(mei[0], key, 0, requests=3, errors=1, prompt_tokens=1000, completion_tokens=200, ttft_count=2, ttft_ms=300)
    used(mei[0], key, 2, requests=4, prompt_tokens=70, completion_tokens=30, ttft_count=1, ttft_ms=600)
    used(mei[0], None, 2, "base", requests=5, prompt_tokens=5, completion_tokens=5)
    used(User.objects.create_user("other"), None, 0, requests=9, prompt_tokens=90_000)
    return key


def lines(client: Client, **filters: str | int) -> list[list[str]]:
    """The table's cells."""
    page = client.get(reverse("usage"), filters).content.decode()
    rows = re.findall(r"<tr><td.*?</tr>", page, re.S)
    return [[re.sub("<[^>]+>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.S)] for row in rows]


def rows(client: Client, **filters: str | int) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(client.get(reverse("usage-csv"), filters).content.decode())))


def test_each_day_is_a_line_newest_first(mei: tuple[User, Client], counted: ApiKey) -> None:
    first, second = lines(mei[1])
    assert first[1:] == ["3", "1", "1,000", "200", "150 ms"]
    assert second[1:] == ["9", "0", "75", "35", "600 ms"]


def test_the_same_is_told_by_model_by_key_and_by_user(mei: tuple[User, Client], counted: ApiKey) -> None:
    assert [line[:2] for line in lines(mei[1], by="model")] == [["qwen", "7"], ["base", "5"]]
    by_key = [line[:2] for line in lines(mei[1], by="key")]
    assert by_key == [[f"=batch ({counted.prefix}…)", "7"], ["pages, without a key", "5"]]
    boss = person("boss", "admin")[1]
    assert [line[:2] for line in lines(boss, by="user")] == [["other", "9"], ["mei", "12"]]


def test_filters_leave_out_what_was_not_asked_for(mei: tuple[User, Client], counted: ApiKey) -> None:
    assert [line[1] for line in lines(mei[1], model="base")] == ["5"]
    assert [line[1] for line in lines(mei[1], key="pages")] == ["5"]
    assert [line[1] for line in lines(mei[1], key=counted.pk)] == ["3", "4"]
    used(mei[0], None, 20, requests=100)
    assert [line[1] for line in lines(mei[1], days=7)] == ["3", "9"]
    assert [line[1] for line in lines(mei[1], days=30)] == ["3", "9", "100"]


@pytest.mark.parametrize(
    "filters", [{"days": "x"}, {"key": "1; drop"}, {"by": "user"}, {"model": "\x00"}, {"user": "2"}], ids=str
)
def test_a_filter_that_is_no_choice_counts_as_not_given(
    filters: dict[str, str], mei: tuple[User, Client], counted: ApiKey
) -> None:
    assert [line[1] for line in lines(mei[1], **filters)] == ["3", "9"]


def test_everybody_sees_their_own_and_an_admin_everything(mei: tuple[User, Client], counted: ApiKey) -> None:
    boss = person("boss", "admin")[1]
    assert {row["user"] for row in rows(mei[1])} == {"mei"}
    assert {row["user"] for row in rows(boss)} == {"mei", "other"}
    other = User.objects.get(username="other")
    assert {row["user"] for row in rows(boss, user=other.pk)} == {"other"}
    assert {row["user"] for row in rows(mei[1], user=other.pk)} == {"mei"}
    assert "90,000" not in text_of(mei[1].get(reverse("usage")))


def test_the_csv_has_the_rows_and_no_formula_of_a_spreadsheet(mei: tuple[User, Client], counted: ApiKey) -> None:
    name = f"'=batch ({counted.prefix}…)"
    told = rows(mei[1], model="qwen")
    assert [(row["day"], row["key"], row["prompt_tokens"], row["mean_ttft_ms"]) for row in told] == [
        (str(today() - timedelta(days=2)), name, "70", "600.0"),
        (str(today()), name, "1000", "150.0"),
    ]
    Usage.objects.update(model="=cmd()")
    assert {row["model"] for row in rows(mei[1])} == {"'=cmd()"}


def test_what_was_used_outlives_its_key_and_its_user(mei: tuple[User, Client], counted: ApiKey) -> None:
    pk, other = counted.pk, User.objects.get(username="other").pk
    counted.delete()
    User.objects.filter(pk=other).delete()
    boss = person("boss", "admin")[1]
    assert f"deleted, number {pk}" in {row["key"] for row in rows(boss)}
    assert f"deleted, number {other}" in {row["user"] for row in rows(boss)}


def test_days_without_use_are_in_the_chart(mei: tuple[User, Client], counted: ApiKey) -> None:
    page = mei[1].get(reverse("usage"), {"days": 7}).content.decode()
    series = re.findall(r'id="usage-series" type="application/json">(.*?)</script>', page)[0]
    assert '"prompt": [0, 0, 0, 0, 75, 0, 1000]' in series
    assert '"completion": [0, 0, 0, 0, 35, 0, 200]' in series


def test_nothing_used_yet_says_where_to_begin(mei: tuple[User, Client]) -> None:
    assert "Nothing was asked yet." in text_of(mei[1].get(reverse("usage")))
