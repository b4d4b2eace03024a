"""Signing in, and what stops somebody who only guesses."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from controlplane import streams
from controlplane.views import FAILURES

pytestmark = [pytest.mark.django_db, pytest.mark.valkey]


@pytest.fixture
def mei() -> User:
    return User.objects.create_user("mei", password="correct horse")


def sign_in(password: str, address: str = "10.0.0.1", username: str = "mei") -> int:
    typed = {"username": username, "password": password}
    return Client(REMOTE_ADDR=address).post(reverse("sign-in"), typed).status_code


def test_the_right_password_leads_on_and_a_wrong_one_does_not(mei: User) -> None:
    assert sign_in("wrong") == 200
    assert sign_in("correct horse") == 302


def test_after_many_failures_the_right_password_has_to_wait_too(mei: User) -> None:
    for n in range(FAILURES):
        assert sign_in("wrong", address=f"10.0.1.{n}") == 200
    assert sign_in("correct horse") == 200
    streams.client().delete("sign-in:mei")
    assert sign_in("correct horse") == 302


def test_one_address_that_tries_many_names_has_to_wait(mei: User) -> None:
    for n in range(FAILURES):
        sign_in("wrong", username=f"user{n}")
    assert sign_in("correct horse") == 200
    assert sign_in("correct horse", address="10.0.0.2") == 302


def test_signing_in_works_while_redis_is_away(mei: User, settings: object) -> None:
    streams.client.cache_clear()
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"  # type: ignore[attr-defined]
    assert sign_in("wrong") == 200
    assert sign_in("correct horse") == 302


def test_the_failures_are_forgotten_after_a_while(mei: User) -> None:
    sign_in("wrong")
    assert 0 < streams.client().ttl("sign-in:mei") <= 600
