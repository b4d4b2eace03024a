"""Servers registered by a program, many at once; changed host keys approved; nodes that leave with what is ours."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.problems import Problem
from nodes import registration, tasks
from nodes.models import Node, Run
from nodes.registration import Login, Way
from nodes.remote.ssh import HostKey
from tests.test_api import Program, error_of
from tests.test_pages import KEY

OTHER_KEY = KEY[:-4] + "AAAA"
SHOWN = {"te1": KEY, "te2": OTHER_KEY}
MANY = {"hosts": "te[1-3]\nroot@172.18.81.300", "user": "root", "password": "a secret horse", "labels": ["a10"]}


@pytest.mark.valkey
@pytest.mark.django_db(transaction=True)
class TestMany:
    """Over transactions that are committed, since only then a worker is sent."""

    @pytest.fixture(autouse=True)
    def servers(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
        """A worker at once, and servers te1 and te2 that show a key and let anybody in."""
        seen: list[tuple[str, str, str]] = []

        def offered_key(login: Login, way: Way = registration.DIRECT) -> HostKey:
            if login.address not in SHOWN:
                raise Problem(f"{login.name} does not answer.", "Check the address.")
            return HostKey(SHOWN[login.address])

        def register(login: Login, key_line: str, by: Any, way: Way = registration.DIRECT) -> Node:
            seen.append((login.name, login.password.reveal(), key_line))
            return Node.objects.create(name=login.name, address=login.address, host_key=key_line)

        monkeypatch.setattr(tasks, "send", lambda task, *words: task(*words) if task is tasks.advance_batch else None)
        monkeypatch.setattr(registration, "offered_key", offered_key)
        monkeypatch.setattr(registration, "register", register)
        return seen

    def test_their_keys_are_shown_and_those_that_are_approved_become_nodes(
        self, servers: list[tuple[str, str, str]]
    ) -> None:
        program = Program()
        begun = program.call("POST", "nodes/batches", **MANY)
        assert begun.status_code == 202
        batch = f"nodes/batches/{begun.json()['id']}"
        found = {one["name"]: one for one in program.get(f"/api/{batch}").json()["candidates"]}
        assert {name: one["state"] for name, one in found.items()} == {
            "te1": "offered", "te2": "offered", "te3": "failed", "root@172.18.81.300": "failed"}
        assert found["te1"]["fingerprint"] == HostKey(KEY).fingerprint
        assert "does not answer" in found["te3"]["reason"]

        shown = [{"id": found["te1"]["id"], "fingerprint": HostKey(OTHER_KEY).fingerprint}]
        assert "another key" in error_of(program.call("POST", f"{batch}/approve", approve=shown), 409)
        shown[0]["fingerprint"] = HostKey(KEY).fingerprint
        told = program.call("POST", f"{batch}/approve", approve=shown)
        assert (told.status_code, servers) == (202, [("te1", "a secret horse", KEY)])
        assert [one["node"] for one in told.json()["candidates"] if one["node"]] == ["te1"]
        stranger = [{"id": 2**40, "fingerprint": "x"}]
        assert "has no server" in error_of(program.call("POST", f"{batch}/approve", approve=stranger), 422)

    def test_those_that_failed_are_tried_again_with_the_same_sign_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        program = Program()
        batch = program.call("POST", "nodes/batches", **MANY).json()["id"]
        monkeypatch.setitem(SHOWN, "te3", KEY)
        again = program.call("POST", f"nodes/batches/{batch}/again").json()["candidates"]
        assert sorted(one["state"] for one in again) == ["failed", "offered", "offered", "offered"]

    def test_a_batch_is_seen_by_who_began_it_and_never_has_the_password(self) -> None:
        program, other = Program(), Program(name="other")
        begun = program.call("POST", "nodes/batches", **MANY)
        batch = f"nodes/batches/{begun.json()['id']}"
        assert b"secret horse" not in begun.content
        for method, path in (("GET", batch), ("POST", f"{batch}/again")):
            error_of(other.call(method, path), 404)
        error_of(other.call("POST", f"{batch}/approve", approve=[]), 404)

    @pytest.mark.parametrize(("change", "said"), [
        ({"hosts": "root@172.18.81.300"}, "hosts:"), ({"password": ""}, "password:"), ({"jump": "none"}, "jump:"),
        ({"bastion": "???"}, "bastion:"), ({"labels": ["."]}, "labels:"), ({"hosts": ""}, "hosts:"),
        ({"root": "password", "password": ""}, "sudo"), ({"port": 0}, "port:"),
    ])
    def test_what_does_not_fit_is_named(self, change: dict[str, Any], said: str) -> None:
        assert said in error_of(Program().call("POST", "nodes/batches", **MANY | change), 422)


@pytest.fixture
def te1(db: None) -> Node:
    return Node.objects.create(name="te1", address="te1", host_key=KEY, state="unreachable", facts_json={})


def test_a_changed_host_key_is_shown_and_pinned_by_its_fingerprint(te1: Node) -> None:
    program = Program("admin")
    error_of(program.get("/api/nodes/te1/host-key"), 404)
    Node.objects.update(offered_host_key=OTHER_KEY)
    old, new = HostKey(KEY).fingerprint, HostKey(OTHER_KEY).fingerprint
    assert program.get("/api/nodes/te1/host-key").json() == {"host": "te1", "pinned": old, "offered": new}
    assert "yet another key" in error_of(program.call("PUT", "nodes/te1/host-key", fingerprint=old), 409)
    assert te1.fresh().host_key == KEY
    assert program.call("PUT", "nodes/te1/host-key", fingerprint=new).json()["state"] == "checking"
    assert te1.fresh().host_key == OTHER_KEY


def test_a_node_leaves_as_a_run_that_takes_away_what_is_ours(te1: Node) -> None:
    program = Program("admin")
    error_of(program.delete("/api/nodes/te1?what=everything"), 422)
    for what, models in (("ours", False), ("all", True)):
        Run.objects.update(state="failed")
        Node.objects.update(state="failed")
        run = program.delete(f"/api/nodes/te1?what={what}")
        assert (run.status_code, run.json()["story"]) == (202, "remove")
        assert Run.objects.get(pk=run.json()["id"]).options["models"] is models


@pytest.mark.parametrize(("role", "method", "path", "body"), [
    ("viewer", "POST", "nodes/batches", MANY), ("viewer", "GET", "nodes/batches/1", {}),
    ("viewer", "POST", "nodes/batches/1/approve", {"approve": []}), ("viewer", "POST", "nodes/batches/1/again", {}),
    ("operator", "PUT", "nodes/te1/host-key", {"fingerprint": "x"}), ("operator", "DELETE", "nodes/te1?what=all", {}),
])
def test_a_role_that_is_too_low_is_refused(role: str, method: str, path: str, body: dict[str, Any], te1: Node) -> None:
    assert "needs the role" in error_of(Program(role).call(method, path, **body), 403)
