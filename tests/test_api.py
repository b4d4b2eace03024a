"""The REST API: the stories of the pages for programs, with the role of a key's owner, and one shape of refusals."""

from __future__ import annotations

import gzip
import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client
from django.utils import timezone

from controlplane.problems import Problem
from deployments import planning
from deployments.gateway import keys
from deployments.models import ApiKey, Deployment, Usage
from deployments.rollout import effects
from deployments.spec import Spec
from nodes import registration
from nodes.models import Cluster, Job, Node, Run
from nodes.remote.ssh import HostKey
from nodes.states import JobState

pytestmark = pytest.mark.django_db
JSON = "application/json"


class Program(Client):
    """A program that shows a key; of a user with a role."""

    def __init__(self, role: str = "operator", controls: bool = True, name: str = "") -> None:
        self.user = User.objects.create_user(name or role)
        self.user.groups.add(Group.objects.get_or_create(name=role)[0])
        self.key, self.plain = keys.create(self.user, "program")
        ApiKey.objects.filter(pk=self.key.pk).update(controls=controls)
        super().__init__(headers={"Authorization": f"Bearer {self.plain}"})

    def call(self, method: str, path: str, **body: Any) -> Any:
        return self.generic(method, f"/api/{path}", json.dumps(body) if body else "", content_type=JSON)


def error_of(answer: Any, status: int) -> str:
    """What a refusal says, which must have the one shape."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"].startswith(JSON)
    told = json.loads(answer.content)["error"]
    assert set(told) == {"what", "next"}
    return f"{told['what']} {told['next']}"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    facts = {"cpus": 4, "gpus": [{"index": 0, "name": "A10", "memory_total_mib": 23028}]}
    return Node.objects.create(
        name="gpu-1", kind=Node.Kind.LOCAL, address="127.0.0.1", state="ready", facts_json=facts, root=str(tmp_path)
    )


@pytest.fixture
def deployment(node: Node) -> Deployment:
    cluster = Cluster.objects.create(name="c", head=node)
    Node.objects.update(cluster=cluster)
    return Deployment.objects.create(name="tiny", model="/m", cluster=cluster, port=20900)


def test_nodes_are_listed_in_parts_and_told_one_by_one(node: Node) -> None:
    program = Program("viewer")
    for number in range(2, 5):
        Node.objects.create(name=f"gpu-{number}", address=f"10.0.0.{number}")
    part = program.get("/api/nodes?limit=2&offset=1").json()
    assert (part["count"], [one["name"] for one in part["items"]]) == (4, ["gpu-2", "gpu-3"])
    one = program.get("/api/nodes/gpu-1").json()
    assert one["gpus"] == [{"index": 0, "name": "A10", "memory_total": 23028 << 20}]
    assert one["facts"]["cpus"] == 4
    error_of(program.get("/api/nodes/gpu-9"), 404)


def test_a_check_is_a_run_with_steps_and_a_log(node: Node) -> None:
    program = Program()
    run = program.call("POST", "nodes/gpu-1/check")
    assert run.status_code == 202
    told = program.get(f"/api/runs/{run.json()['id']}").json()
    assert (told["about"], told["created_by"]) == (node.subject, "operator")
    assert [(step["kind"], step["node"]) for step in told["steps"]] == [("facts", "gpu-1")]
    assert [one["id"] for one in program.get(f"/api/runs?about={node.subject}").json()["items"]] == [told["id"]]
    assert program.get("/api/runs?about=node:99").json()["count"] == 0
    error_of(program.call("POST", "nodes/gpu-1/check"), 409)
    assert Run.objects.count() == 1


def test_a_log_is_read_in_parts_byte_for_byte(node: Node) -> None:
    job = Job.objects.create(node=node, name="talk", state=JobState.EXITED, log_size=6)
    job.archive.create(start=0, end=6, data=gzip.compress(b"a\xff\r\nbc"))
    program = Program("viewer")
    answer = program.get(f"/api/jobs/{job.pk}/log?start=1&size=3")
    assert (answer.content, answer["Content-Type"]) == (b"\xff\r\n", "text/plain; charset=utf-8")
    assert answer["X-Log-Start"] == "1"
    assert program.get(f"/api/jobs/{Job(node=node).pk}/log").status_code == 404


def test_a_deployment_is_made_named_again_and_deleted(node: Node) -> None:
    program = Program("admin")
    new = {"name": "tiny", "model": "/data/m", "node": "gpu-1", "options": {"max-model-len": 4096}}
    made = program.call("POST", "deployments", **new)
    assert (made.status_code, made.json()["state"], made.json()["options"]) == (201, "draft", {"max-model-len": 4096})
    assert "exists already" in error_of(program.call("POST", "deployments", **new), 409)
    changed = program.call("PUT", "deployments/tiny", **new | {"options": {"max-model-len": 2048}})
    assert changed.json()["options"] == {"max-model-len": 2048}
    kept = program.get("/api/deployments/tiny/revisions").json()["items"]
    assert [(one["number"], one["spec"]["options"]["max-model-len"]) for one in kept] == [(2, 2048), (1, 4096)]
    assert program.call("POST", "deployments/tiny/revisions/1/restore").json()["options"] == {"max-model-len": 4096}
    assert "no revision 9" in error_of(program.call("POST", "deployments/tiny/revisions/9/restore"), 409)
    assert program.call("POST", "deployments/tiny/aliases", name="org/gpt-4o").json()["aliases"] == ["org/gpt-4o"]
    assert program.delete("/api/deployments/tiny/aliases?name=org/gpt-4o").status_code == 204
    assert program.get("/api/deployments/tiny").json()["aliases"] == []
    assert [program.delete("/api/deployments/tiny").status_code for _ in range(2)] == [204, 404]


def test_a_deployment_starts_and_stops(deployment: Deployment) -> None:
    program = Program()
    assert program.call("POST", "deployments/tiny/start").json()["story"] == "rollout"
    assert program.get("/api/deployments").json()["items"][0]["state"] == "rolling_out"
    assert program.call("POST", "deployments/tiny/stop").status_code == 202
    assert "is not running" in error_of(program.call("POST", "deployments/tiny/stop"), 409)


@pytest.mark.parametrize(("change", "said"), [
    ({"name": "Tiny"}, "name:"), ({"name": "../x"}, "name:"), ({"port": 80}, "port:"),
    ({"model": "/m\0"}, "model:"), ({"node": "x" * 64}, "node:"), ({"options": [1]}, "options:"),
])
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str, node: Node) -> None:
    new = {"name": "tiny", "model": "/m", "node": "gpu-1"} | change
    assert said in error_of(Program().call("POST", "deployments", **new), 422)


@pytest.mark.parametrize(("change", "said"), [
    ({"model": "m"}, "neither demo"), ({"node": ""}, "needs a place"), ({"node": "none"}, "no node none"),
    ({"options": {"api-key": "x"}}, "api-key"), ({"name": "new"}, "cannot be a deployment's name"),
])
def test_what_cannot_be_is_said_as_on_the_page(change: dict[str, Any], said: str, node: Node) -> None:
    new = {"name": "tiny", "model": "/m", "node": "gpu-1"} | change
    assert said in error_of(Program().call("POST", "deployments", **new), 409)
    assert not Deployment.objects.exists()


def test_a_file_is_applied_and_again_is_the_same_as_once(node: Node) -> None:
    program = Program()
    file = "name: tiny\nmodel: /m\nnode: gpu-1\noptions: {seed: %d}\n"

    def apply(text: str | bytes) -> Any:
        return program.generic("POST", "/api/apply", text, content_type="application/yaml")

    assert [one["what"] for text in (file % 1, file % 1) for one in apply(text).json()] == ["created", "unchanged"]
    (changed,) = apply(file % 2).json()
    assert changed["run"] is None
    assert (changed["what"], changed["lines"]) == ("changed", [{"name": "seed", "old": 1, "new": 2}])
    for text in ("[", "name: tiny", "a: &x 1", "--- {}\n" * 200, b"\x00", ""):
        error_of(apply(text), 409)
    error_of(apply(b"\xff"), 422)
    elsewhere = (file % 1).replace("tiny", "b").replace("gpu-1", "none")
    assert "no node none" in error_of(apply(f"{file % 3}---\n{elsewhere}"), 409)
    assert Deployment.objects.get().options == {"seed": 2}  # nothing of a file is done that cannot be done whole


def test_nodes_are_asked_in_no_transaction(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that answers slowly would keep everybody else from writing meanwhile."""
    outside, within, plan_for = len(connection.atomic_blocks), [], planning.plan_for

    def asked(spec: Spec, besides: Deployment | None = None) -> planning.Planned:
        within.append(len(connection.atomic_blocks) - outside)
        return plan_for(spec, besides)

    monkeypatch.setattr(planning, "plan_for", asked)
    program = Program()
    file, change = "name: tiny\nmodel: /m\nnode: gpu-1\n", {"name": "tiny", "model": "/m", "node": "gpu-1"}
    for address in ("/api/apply", "/api/apply?start=true"):
        assert program.generic("POST", address, file, content_type="application/yaml").status_code == 200
    Deployment.objects.update(state="draft")
    assert program.call("PUT", "deployments/tiny", **change, options={"seed": 1}).status_code == 200
    assert program.call("POST", "deployments/tiny/revisions/1/restore").status_code == 200
    assert len(within) >= 6
    assert set(within) == {0}


def test_what_cannot_run_now_is_saved_and_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_args: object, **_kwargs: object) -> None:
        raise Problem("gpu-1 cannot be reached.", "Bring it back.")

    program = Program()
    change = {"name": "tiny", "model": "/m", "node": "gpu-1"}
    program.call("POST", "deployments", **change)
    monkeypatch.setattr(effects, "take", cannot)
    said = error_of(program.call("PUT", "deployments/tiny", **change, options={"seed": 1}), 409)
    assert "is saved, and does not run yet: gpu-1 cannot be reached." in said
    file = "name: tiny\nmodel: /m\nnode: gpu-1\noptions: {seed: 2}\n"
    (told,) = program.generic("POST", "/api/apply", file, content_type="application/yaml").json()
    assert (told["run"], "gpu-1 cannot be reached." in told["problem"]) == (None, True)
    assert Deployment.objects.get().options == {"seed": 2}


def test_a_cluster_is_made_formed_joined_left_dissolved_and_deleted(node: Node) -> None:
    for number in (2, 3):
        Node.objects.create(name=f"gpu-{number}", address=f"127.0.0.{number}", state="ready", facts_json={})
    program = Program("admin")
    made = program.call("POST", "clusters", name="four", head="gpu-1", nodes=["gpu-2"])
    assert (made.status_code, made.json()["state"], made.json()["nodes"]) == (201, "stopped", ["gpu-1", "gpu-2"])
    assert program.call("POST", "clusters/four/join", node="gpu-3").json() == {"run": None}
    assert program.call("POST", "clusters/four/leave", node="gpu-3").json() == {"run": None}
    assert "is the head" in error_of(program.call("POST", "clusters/four/leave", node="gpu-1"), 409)
    error_of(program.call("POST", "clusters/four/leave", node="gpu-9"), 404)
    assert program.call("POST", "clusters/four/form").json()["story"] == "form"
    assert program.call("POST", "clusters/four/dissolve").json()["story"] == "dissolve"
    Cluster.objects.update(state="stopped")
    assert [program.delete("/api/clusters/four").status_code for _ in range(2)] == [204, 404]


def test_a_host_key_is_shown_and_then_registers_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGh0dHBzOi8vZXhhbXBsZS5pbnZhbGlkLzEyMzQ1"
    seen: list[Any] = []

    def register(login: registration.Login, key_line: str, by: User) -> Node:
        seen.append((login.password.reveal(), key_line, by))
        return Node.objects.create(name=login.name, address=login.address, user=login.user)

    monkeypatch.setattr(registration, "offered_key", lambda login: HostKey(line))
    monkeypatch.setattr(registration, "register", register)
    program = Program()
    login = {"name": "te1", "address": "10.0.0.9", "user": "root", "password": "a horse"}
    assert program.call("POST", "nodes/host-key", **login).json()["line"] == line
    made = program.call("POST", "nodes", **login, host_key=line)
    assert (made.status_code, made.json()["name"]) == (201, "te1")
    assert seen == [("a horse", line, program.user)]
    assert "password" in error_of(program.call("POST", "nodes", **login | {"password": ""}, host_key=line), 422)


def test_a_key_is_made_changed_and_revoked_and_shown_once() -> None:
    program = Program()
    made = program.call("POST", "keys", name="batch", requests_per_minute=60, expires="2099-12-31").json()
    assert keys.load().callers[keys._digest(made["key"])].allowance.requests_per_minute == 60
    changed = program.call("PUT", f"keys/{made['id']}", name="batch", concurrent=2).json()
    assert (changed["requests_per_minute"], changed["concurrent"], changed["expires_at"]) == (None, 2, None)
    assert made["key"] not in program.get("/api/keys").content.decode()
    assert program.delete(f"/api/keys/{made['id']}").status_code == 204
    assert program.get(f"/api/keys/{made['id']}").json()["state"] == "revoked"
    error_of(program.call("PUT", f"keys/{made['id']}", name="batch"), 404)
    assert "expires" in error_of(program.call("POST", "keys", name="old", expires="2020-01-01"), 422)


def test_everybody_sees_their_own_keys_and_use_an_admin_all() -> None:
    mei, admin = Program(name="mei"), Program("admin")
    for program in (mei, admin):
        Usage.objects.create(day=timezone.now().date(), user=program.user, key=program.key, model="m", requests=2)
    assert [one["owner"] for one in mei.get("/api/keys").json()["items"]] == ["mei"]
    assert mei.get(f"/api/keys/{admin.key.pk}").status_code == 404
    assert admin.get("/api/keys").json()["count"] == 2
    assert [(line["name"], line["requests"]) for line in mei.get("/api/usage?by=model").json()] == [("m", 2)]
    assert sorted(line["name"] for line in admin.get("/api/usage?by=user").json()) == ["admin", "mei"]
    assert admin.get("/api/usage").json()[0]["name"] == timezone.now().date().isoformat()


FORBIDDEN = [
    ("viewer", "POST", "nodes/gpu-1/check"), ("viewer", "POST", "nodes/gpu-1/prepare"),
    ("operator", "DELETE", "nodes/gpu-1"), ("viewer", "POST", "deployments/tiny/start"),
    ("viewer", "POST", "deployments/tiny/stop"), ("operator", "DELETE", "deployments/tiny"),
    ("viewer", "POST", "deployments/tiny/aliases"), ("viewer", "POST", "keys"), ("viewer", "DELETE", "keys/1"),
    ("viewer", "POST", "apply"), ("viewer", "POST", "clusters"), ("viewer", "POST", "clusters/c/form"),
    ("viewer", "POST", "clusters/c/dissolve"), ("viewer", "POST", "clusters/c/join"),
    ("viewer", "POST", "clusters/c/leave"), ("operator", "DELETE", "clusters/c"), ("viewer", "PUT", "deployments/tiny"),
    ("viewer", "POST", "nodes"), ("viewer", "POST", "nodes/host-key"), ("viewer", "POST", "deployments"),
]
FITTING = {
    "nodes": {"name": "a", "address": "127.0.0.1", "user": "a", "password": "b", "host_key": "c"},
    "nodes/host-key": {"name": "a", "address": "127.0.0.1", "user": "a", "password": "b"},
    "deployments": {"name": "a", "model": "/m", "node": "gpu-1"},
    "clusters": {"name": "a", "head": "gpu-1"},
    "clusters/c/join": {"node": "gpu-1"}, "clusters/c/leave": {"node": "gpu-1"},
    "deployments/tiny": {"name": "tiny", "model": "/m", "node": "gpu-1"}, "deployments/tiny/aliases": {"name": "a"},
    "keys": {"name": "a"},
}


@pytest.mark.parametrize(("role", "method", "path"), FORBIDDEN)
def test_a_role_that_is_too_low_is_refused(role: str, method: str, path: str, deployment: Deployment) -> None:
    assert "needs the role" in error_of(Program(role).call(method, path, **FITTING.get(path, {})), 403)
    assert not Run.objects.exists()


def test_a_key_for_prompts_controls_nothing_and_others_are_unknown(node: Node) -> None:
    assert "for prompts only" in error_of(Program("admin", controls=False).call("GET", "nodes"), 403)
    program = Program()
    for change in ({"revoked_at": timezone.now()}, {"revoked_at": None, "expires_at": timezone.now()}):
        ApiKey.objects.filter(pk=program.key.pk).update(**change)
        answer = program.call("GET", "nodes")
        assert "No API key" in error_of(answer, 401)
        assert answer["WWW-Authenticate"] == "Bearer"
    ApiKey.objects.filter(pk=program.key.pk).update(expires_at=timezone.now() + timedelta(days=1))
    assert program.call("GET", "nodes").status_code == 200
    User.objects.filter(pk=program.user.pk).update(is_active=False)
    error_of(program.call("GET", "nodes"), 401)
    error_of(Client(headers={"Authorization": f"Bearer {keys.session_token(program.user)}"}).get("/api/nodes"), 401)
    error_of(Client().get("/api/openapi.json"), 401)


def test_a_page_may_call_with_its_session_and_csrf_token(node: Node) -> None:
    user = Program().user
    page = Client(enforce_csrf_checks=True)
    page.force_login(user)
    assert page.get("/api/nodes").status_code == 200
    assert "CSRF" in error_of(page.post("/api/nodes/gpu-1/check"), 403)
    token = page.get("/keys/").cookies["csrftoken"].value
    assert page.post("/api/nodes/gpu-1/check", headers={"X-CSRFToken": token}).status_code == 202
    error_of(Client(enforce_csrf_checks=True).post("/api/nodes/gpu-1/check"), 401)


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "nowhere", 404), ("POST", "", 404), ("PATCH", "nodes", 405), ("GET", "nodes/a%00b", 422),
    ("GET", "runs/99999999999999999999999", 422), ("GET", "runs/0", 422), ("GET", "runs/x", 422),
    ("GET", "nodes?limit=1000", 422), ("GET", "nodes?offset=-1", 422), ("GET", "jobs/x/log", 422),
    ("GET", "nodes/..%2f..%2fkeys", 404), ("TRACE", "nodes", 405),
])
def test_addresses_that_lead_nowhere_say_so_in_the_same_shape(method: str, path: str, status: int) -> None:
    assert error_of(Program().call(method, path), status)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}', b"", b"[]", b"null", b'"x"'])
def test_a_body_that_is_no_object_is_refused(content: bytes) -> None:
    answer = Program().generic("POST", "/api/keys", content, content_type=JSON)
    assert answer.status_code in (400, 422)
    error_of(answer, answer.status_code)


def test_a_body_that_is_too_large_is_refused() -> None:
    error_of(Program().generic("POST", "/api/keys", b'{"name": "%s"}' % (b"x" * (3 << 20)), content_type=JSON), 413)


def test_refusals_are_in_the_readers_language() -> None:
    answer = Program().get("/api/nodes/none", headers={"Accept-Language": "zh-Hans"})
    assert "没有" in error_of(answer, 404)


def test_the_document_names_every_operation_and_both_ways_in() -> None:
    document = Program("viewer").get("/api/openapi.json").json()
    assert {"/api/nodes", "/api/runs/{id}", "/api/deployments/{name}/start", "/api/keys/{id}"} <= set(document["paths"])
    assert {"KeyAuth", "PageAuth"} <= set(document["components"]["securitySchemes"])


def test_neither_keys_nor_passwords_are_logged(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    program = Program()
    made = program.call("POST", "keys", name="batch").json()
    for path in ("nodes", "nowhere", "runs/0"):
        program.call("GET", path)
    program.call("POST", "nodes", name="-", address="-", user="-", password="a secret horse", host_key="x")
    error_of(Client(headers={"Authorization": f"Bearer {program.plain[:-1]}?"}).get("/api/nodes"), 401)
    said = "\n".join(f"{record.getMessage()} {record.args}" for record in caplog.records)
    assert not [secret for secret in (program.plain[3:20], made["key"][3:20], "secret horse") if secret in said]
