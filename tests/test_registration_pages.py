"""The pages that register servers: what is typed is judged at once, keys are approved together, secrets stay sealed."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse

from controlplane.problems import Problem
from nodes import batches, registration, tasks
from nodes.candidates import PENDING_SECONDS, Batch, Candidate, SignIn
from nodes.models import Node
from nodes.registration import Login, Way
from nodes.remote.ssh import HostKey
from tests.test_pages import KEY

pytestmark = [pytest.mark.valkey, pytest.mark.django_db(transaction=True)]

OTHER_KEY = KEY[:-4] + "AAAA"
FORM = {"count": "one", "name": "te1", "address": "172.18.81.126", "port": "22", "user": "root", "method": "password",
        "password": "correct horse"}
MANY = {**FORM, "count": "many", "name": "", "address": "", "hosts": "te[1-2]\nroot@172.18.81.300\nte3"}


def client_of(name: str, role: str) -> Client:
    user = User.objects.create_user(name, password="harbour-light-7")
    user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator() -> Client:
    return client_of("mei", "operator")


@pytest.fixture(autouse=True)
def worker_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker would do soon is done when it is queued."""
    monkeypatch.setattr(tasks, "send", lambda task, *words: task(*words) if task is tasks.advance_batch else None)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Address → the key it shows; other addresses refuse the connection."""
    shown = {"172.18.81.126": KEY, "te1": KEY, "te2": OTHER_KEY, "te3": OTHER_KEY}

    def offered_key(login: Login, way: Way = registration.DIRECT) -> HostKey:
        registration.check_is_new(login)
        if login.address not in shown:
            raise Problem(f"{login.name} does not answer.", "Check the address.")
        return HostKey(shown[login.address])

    monkeypatch.setattr(registration, "offered_key", offered_key)
    return shown


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Login, str]]:
    seen: list[tuple[Login, str]] = []

    def register(login: Login, key_line: str, by: User | None, way: Way = registration.DIRECT) -> Node:
        seen.append((login, key_line))
        return Node.objects.create(name=login.name, address=login.address, user=login.user, host_key=key_line,
                                   labels=list(login.labels))

    monkeypatch.setattr(registration, "register", register)
    return seen


def text_of(response: Any) -> str:
    return re.sub(r"\s+", " ", response.content.decode())


def begin(client: Client, form: dict[str, str] = FORM) -> str:
    return str(client.post(reverse("node-new"), form)["Location"])


def tick(client: Client, address: str) -> list[str]:
    """The values of the ticked boxes of a page."""
    page = client.get(address).content.decode()
    return re.findall(r'name="approve" value="([^"]+)" checked', page)


# --- one server ---


def test_registering_shows_the_fingerprint_and_pins_exactly_that_key(
    operator: Client, keys: dict[str, str], registered: list[tuple[Login, str]]
) -> None:
    address = begin(operator)
    page = text_of(operator.get(address))
    assert HostKey(KEY).fingerprint in page
    assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in page
    assert "correct horse" not in page
    assert not registered
    assert operator.post(address, {"approve": tick(operator, address)})["Location"] == address
    assert [(login.password.reveal(), key) for login, key in registered] == [("correct horse", KEY)]
    assert operator.get(address)["Location"] == reverse("node", args=["te1"])
    assert Batch.objects.get().sign_in == ""


def test_what_was_typed_is_kept_only_sealed(operator: Client, keys: dict[str, str]) -> None:
    begin(operator)
    batch = Batch.objects.values().get()
    assert "correct horse" not in str(batch) + str(list(Candidate.objects.values()))
    assert SignIn.unseal(batch["sign_in"]).password.reveal() == "correct horse"
    assert "correct horse" not in str(dict(operator.session))


def test_another_fingerprint_than_the_one_shown_is_not_approved(
    operator: Client, keys: dict[str, str], registered: list[tuple[Login, str]]
) -> None:
    address = begin(operator)
    pk = Candidate.objects.get().pk
    response = operator.post(address, {"approve": f"{pk} SHA256:other"})
    assert response.status_code == 409
    assert "shows another key by now" in text_of(response)
    assert not registered


def test_a_registration_belongs_to_who_began_it(operator: Client, keys: dict[str, str]) -> None:
    address = begin(operator)
    stranger = client_of("eve", "admin")
    assert stranger.get(address).status_code == 404
    assert stranger.post(address, {"approve": tick(operator, address)}).status_code == 404
    batch = Batch.objects.get()
    assert FORM["address"] not in text_of(stranger.get(reverse("node-new") + f"?from={batch.pk}"))


@pytest.mark.parametrize("number", ["1" * 30, "x", "-1", "²", ""])
def test_any_number_may_stand_in_the_address(operator: Client, number: str) -> None:
    assert operator.get(reverse("node-new"), {"from": number}).status_code == 200


def too_old(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ten minutes had gone by: the seal itself says so, whatever the row says."""
    import time

    later = time.time() + PENDING_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)


def test_a_sign_in_is_not_used_after_ten_minutes(
    operator: Client, keys: dict[str, str], registered: list[tuple[Login, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = begin(operator)
    ticked = tick(operator, address)
    too_old(Batch.objects.get(), monkeypatch)
    operator.force_login(User.objects.get())
    response = operator.post(address, {"approve": ticked})
    assert response.status_code == 409
    assert "is too old" in text_of(response)
    assert not registered


def test_what_nobody_approved_is_forgotten_after_ten_minutes(
    operator: Client, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(operator)
    Batch.objects.update(created_at=Batch.objects.get().created_at - timedelta(seconds=PENDING_SECONDS + 1))
    too_old(Batch.objects.get(), monkeypatch)
    batches.sweep()
    assert Batch.objects.get().sign_in == ""
    candidate = Candidate.objects.get()
    assert (candidate.state, "is too old" in candidate.reason) == ("failed", True)
    Batch.objects.update(created_at=Batch.objects.get().created_at - timedelta(days=1))
    batches.sweep()
    assert not Batch.objects.exists()


def test_a_server_that_cannot_be_reached_is_told_and_the_form_is_still_filled_in(
    operator: Client, keys: dict[str, str]
) -> None:
    page = text_of(operator.get(begin(operator, {**FORM, "address": "te9"})))
    assert "te1 does not answer." in page
    assert "Check the address." in page
    batch = Batch.objects.get()
    again = text_of(operator.get(reverse("node-new") + f"?from={batch.pk}"))
    assert 'value="te9"' in again
    assert "correct horse" not in again


def test_a_server_that_failed_is_tried_again_with_the_same_sign_in(
    operator: Client, keys: dict[str, str], registered: list[tuple[Login, str]]
) -> None:
    address = begin(operator, {**FORM, "address": "te9"})
    keys["te9"] = KEY
    operator.post(reverse("node-again", args=[Batch.objects.get().pk]))
    operator.post(address, {"approve": tick(operator, address)})
    assert [login.address for login, _key in registered] == ["te9"]


def test_a_refused_password_is_told_beside_the_fingerprint(
    operator: Client, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Node:
        raise Problem("te1 refuses the password of root.", "Type it again.")

    monkeypatch.setattr(registration, "register", refuse)
    address = begin(operator)
    operator.post(address, {"approve": tick(operator, address)})
    page = text_of(operator.get(address))
    assert "te1 refuses the password of root." in page
    assert HostKey(KEY).fingerprint in page


def test_a_private_key_is_never_written_back(operator: Client) -> None:
    private = "-----BEGIN OPENSSH PRIVATE KEY-----"
    response = operator.post(reverse("node-new"), {**FORM, "method": "key", "private_key": private, "port": "0"})
    assert response.status_code == 409
    assert private not in text_of(response)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("port", "99999", "A port is a number from 1 to 65535."),
        ("port", "ssh", "A port is a number from 1 to 65535."),
        ("name", "te 1; rm -rf /", "A name has letters, digits and hyphens only"),
        ("name", "new", "A name has letters, digits and hyphens only"),
        ("address", "root@te1", "This is not a host name or IP address."),
        ("address", "-oProxyCommand=x", "This is not a host name or IP address."),
        ("address", "172.18.81.300", "300 is not a number from 0 to 255."),
        ("user", "root$(id)", "This is not the name of a Linux user."),
        ("password", "", "Type the password, or choose Private key above."),
        ("labels", "<b>", "Labels are at most 16 words"),
    ],
)
def test_a_field_that_cannot_be_right_says_so(operator: Client, field: str, value: str, sentence: str) -> None:
    response = operator.post(reverse("node-new"), {**FORM, field: value})
    assert response.status_code == 409
    assert sentence in text_of(response)
    assert not Batch.objects.exists()


@pytest.mark.parametrize("typed", ["'; touch /tmp/x; '", "$(id)", "a\nb", "世界 \u202e", "a\0b", "x" * 10_000])
def test_anything_may_be_typed_anywhere(operator: Client, keys: dict[str, str], typed: str) -> None:
    others = ("hosts", "private_key", "passphrase", "root", "sudo_password", "jump", "bastion", "labels")
    for field in (*FORM, *others):
        for form in (FORM, MANY):
            assert operator.post(reverse("node-new"), {**form, field: typed}).status_code in (302, 409), field


# --- several ---


def test_the_good_ones_go_on_and_the_bad_say_why(
    operator: Client, keys: dict[str, str], registered: list[tuple[Login, str]]
) -> None:
    address = begin(operator, {**MANY, "labels": "A10, rack-3"})
    page = text_of(operator.get(address))
    assert "300 is not a number from 0 to 255." in page
    assert page.count("data-fingerprint") == 3
    assert "the same key as te3: was the disk cloned?" in page
    ticked = tick(operator, address)
    assert len(ticked) == 1  # the two that share a key wait for somebody to tick them
    operator.post(address, {"approve": ticked})
    assert [(login.name, login.address, login.labels) for login, _key in registered] == [
        ("te1", "te1", ("a10", "rack-3"))]
    assert list(Candidate.objects.exclude(name="").values_list("name", "state")) == [
        ("te1", "registered"), ("te2", "offered"), ("te3", "offered")]


def test_a_list_without_any_server_stays_on_the_form_with_its_reasons(operator: Client) -> None:
    response = operator.post(reverse("node-new"), {**MANY, "hosts": "te[4-1]\n;"})
    page = text_of(response)
    assert response.status_code == 409
    assert "No entry of the list can be a server" in page
    assert "goes backwards" in page
    assert not Batch.objects.exists()


def test_what_is_typed_is_told_while_it_is_typed(operator: Client) -> None:
    Node.objects.create(name="te2", address="te2", user="root", host_key=KEY)
    typed = {"hosts": "te[1-2]\nops@<b>", "user": "root", "port": "x"}
    page = text_of(operator.post(reverse("node-understood"), typed))
    assert "3 servers" not in page
    assert "2 servers" not in page
    assert "1 server" in page
    assert "&lt;b&gt;" in page


def test_a_server_that_is_registered_already_says_as_what(operator: Client, keys: dict[str, str]) -> None:
    Node.objects.create(name="old", address="te1", user="root", host_key=KEY)
    page = text_of(operator.get(begin(operator, {**MANY, "hosts": "te1\nte2"})))
    assert "Registered already, as old." in page


def test_a_jump_host_comes_first_and_then_the_others_through_it(
    operator: Client, keys: dict[str, str], registered: list[tuple[Login, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nodes.models import Bastion

    keys["bastion.lab"] = KEY[:-4] + "BBBB"
    ways: list[Way] = []
    ask: Callable[..., HostKey] = registration.offered_key

    def offered_key(login: Login, way: Way = registration.DIRECT) -> HostKey:
        ways.append(way)
        return ask(login, way)

    monkeypatch.setattr(registration, "offered_key", offered_key)
    monkeypatch.setattr(registration, "register_bastion", lambda login, key: Bastion.objects.create(
        address=login.address, port=login.port, user=login.user, host_key=key))
    address = begin(operator, {**MANY, "hosts": "te1\nte2", "jump": "other", "bastion": "ops@bastion.lab:2200"})
    assert text_of(operator.get(address)).count("data-fingerprint") == 1
    assert ways == [registration.DIRECT]
    operator.post(address, {"approve": tick(operator, address)})
    bastion = Bastion.objects.get()
    assert str(bastion) == "ops@bastion.lab:2200"
    assert ways[1:] == [Way(None, bastion)] * 2
    assert not registered
    operator.post(address, {"approve": tick(operator, address)})
    assert sorted(login.name for login, _key in registered) == ["te1", "te2"]


def test_a_jump_host_that_is_a_node_is_used_as_that(operator: Client, keys: dict[str, str]) -> None:
    gate = Node.objects.create(name="gate", address="gate.lab", user="ops", host_key=KEY)
    begin(operator, {**MANY, "jump": "other", "bastion": "ops@gate.lab"})
    assert Batch.objects.get().jump == gate
    assert not Candidate.objects.filter(is_bastion=True).exists()
    begin(operator, {**MANY, "jump": "other", "bastion": "ops@gate.example"})
    assert Candidate.objects.get(is_bastion=True).name == "gate-example"


def test_a_worker_that_died_after_the_node_was_made_leaves_no_second_one(
    operator: Client, keys: dict[str, str], registered: list[tuple[Login, str]]
) -> None:
    address = begin(operator)
    ticked = tick(operator, address)
    Node.objects.create(name="te1", address="172.18.81.126", user="root", host_key=KEY)
    operator.post(address, {"approve": ticked})
    assert not registered
    assert Candidate.objects.get().node == Node.objects.get()
