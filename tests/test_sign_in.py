"""Signing in, and what stops somebody who only guesses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from controlplane import streams
from controlplane.views import ADDRESS_FAILURES, FAILURES, FEW_FAILURES, NAME_FAILURES

pytestmark = [pytest.mark.django_db, pytest.mark.valkey]


@pytest.fixture
def mei(settings: Settings) -> User:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # hundreds of guesses
    return User.objects.create_user("mei", password="correct horse")


def sign_in(password: str, address: str = "10.0.0.1", username: str = "mei") -> int:
    typed = {"username": username, "password": password}
    return Client(REMOTE_ADDR=address).post(reverse("sign-in"), typed).status_code


def test_the_right_password_leads_on_and_a_wrong_one_does_not(mei: User) -> None:
    assert sign_in("wrong") == 200
    assert sign_in("correct horse") == 302


def tries_until_refused(monkeypatch: pytest.MonkeyPatch, **where: str) -> int:
    """How many wrong passwords are looked at before they no longer are."""
    looked: list[object] = []
    monkeypatch.setattr("django.contrib.auth.forms.authenticate", lambda *a, **k: looked.append(k))
    for tried in count(1):
        sign_in("wrong", **where)
        if len(looked) < tried:
            break
    monkeypatch.undo()
    return len(looked)


def test_after_many_failures_the_right_password_has_to_wait_too(mei: User) -> None:
    for _n in range(FAILURES):
        assert sign_in("wrong") == 200
    assert sign_in("correct horse") == 200
    for key in streams.client().keys("sign-in*"):
        streams.client().delete(key)
    assert sign_in("correct horse") == 302


@pytest.mark.parametrize("spelling", ["mei ", "\u2003mei", "MEI", "\uff4d\uff45\uff49"])
def test_another_spelling_of_a_name_is_the_same_name(mei: User, spelling: str) -> None:
    for _n in range(FAILURES):
        sign_in("wrong", username=spelling)
    assert sign_in("correct horse") == 200


def test_a_stranger_cannot_lock_somebody_out(mei: User) -> None:
    for n in range(NAME_FAILURES + 10):
        sign_in("wrong", address=f"10.0.1.{n % 30}")
    assert sign_in("correct horse", address="10.0.0.2") == 302


def test_a_name_that_is_tried_from_everywhere_has_few_tries_from_each_address(
    mei: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tries_until_refused(monkeypatch) == FAILURES
    for n in range(NAME_FAILURES):
        sign_in("wrong", address=f"10.0.1.{n}")
    assert tries_until_refused(monkeypatch, address="10.0.0.2") == FEW_FAILURES


def test_tries_that_are_refused_do_not_put_a_name_under_attack(mei: User, monkeypatch: pytest.MonkeyPatch) -> None:
    for _n in range(NAME_FAILURES + 10):
        sign_in("wrong")
    assert tries_until_refused(monkeypatch, address="10.0.0.2") == FAILURES


def test_one_address_that_tries_many_names_has_to_wait(mei: User) -> None:
    for n in range(ADDRESS_FAILURES):
        sign_in("wrong", username=f"user{n}")
    assert sign_in("correct horse") == 200
    assert sign_in("correct horse", address="10.0.0.2") == 302


def test_of_ipv6_a_whole_network_is_one_address(mei: User) -> None:
    for n in range(FAILURES):
        sign_in("wrong", address=f"2001:db8::{n:x}:1")
    assert sign_in("correct horse", address="2001:db8::ffff:ffff:ffff:ffff") == 200
    assert sign_in("correct horse", address="2001:db8:0:1::1") == 302
    assert sign_in("correct horse", address="::ffff:10.0.0.1") == 302


def test_many_tries_at_once_are_counted_like_one_after_the_other(mei: User, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr("django.contrib.auth.forms.authenticate", lambda *a, **k: looked.append(k))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sign_in, ["wrong"] * 40))
    assert len(looked) == FAILURES


def test_a_success_clears_what_its_owner_mistyped(mei: User) -> None:
    for _round in range(3):
        for _n in range(FAILURES - 1):
            assert sign_in("wrong") == 200
        assert sign_in("correct horse") == 302


def test_many_who_sign_in_from_one_address_do_not_stop_each_other(mei: User) -> None:
    assert {sign_in("correct horse") for _n in range(ADDRESS_FAILURES + 5)} == {302}


def test_an_empty_password_gives_nothing_back(mei: User) -> None:
    for _n in range(FAILURES):
        sign_in("wrong")
        sign_in("")
    assert sign_in("correct horse") == 200


def test_signing_in_works_while_redis_is_away(mei: User, settings: object) -> None:
    streams.client.cache_clear()
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"  # type: ignore[attr-defined]
    assert sign_in("wrong") == 200
    assert sign_in("correct horse") == 302


def test_the_failures_are_forgotten_after_a_while(mei: User) -> None:
    sign_in("wrong")
    counters = list(streams.client().keys("sign-in*"))
    assert len(counters) == 3
    assert all(0 < streams.client().ttl(counter) <= 600 for counter in counters)
