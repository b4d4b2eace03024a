"""Every page: who may see it, what it says when there is nothing, and how bad input is told."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone

from controlplane.problems import Problem
from deployments import planning
from deployments.gateway import keys as gateway_keys
from deployments.model_files import ModelFiles
from deployments.models import ApiKey, Deployment
from deployments.rollout import stories as rollout
from nodes import logs, registration
from nodes.models import Cluster, Job, Node, Run, Step
from nodes.remote.ssh import HostKey
from nodes.web.pages import Source, sources, stories

pytestmark = pytest.mark.django_db

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEffffffffffffffffffffffffffffffffffffffffff"
FORM = {
    "name": "te1",
    "address": "172.18.81.126",
    "port": "22",
    "user": "root",
    "method": "password",
    "password": "correct horse",
}
PAGES = ["alerts", "alert-settings", "overview", "nodes", "node-new", "clusters", "cluster-new", "deployments",
         "deployment-new", "playground", "keys", "usage"]  # fmt: skip


def signed_in(role: str) -> Client:
    user = User.objects.create_user(role, password="harbour-light-7")
    if role == "superuser":
        User.objects.filter(pk=user.pk).update(is_superuser=True)
    elif role != "nobody":
        user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def admin() -> Client:
    return signed_in("admin")


@pytest.fixture
def node() -> Node:
    return Node.objects.create(name="te1", address="172.18.81.126", user="root", state="ready", host_key=KEY)


@pytest.fixture
def deployment(node: Node) -> Deployment:
    cluster = Cluster.objects.create(name="te1", head=node)
    return Deployment.objects.create(name="smollm2", model="demo", cluster=cluster, port=20700, state="ready")


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise Problem("te1 refuses the password of root.", "Type it again.")


def text_of(response: Any) -> str:
    return re.sub(r"\s+", " ", response.content.decode())


# --- who may see what ---


def _patterns(resolver: URLResolver) -> Iterator[URLPattern]:
    for entry in resolver.url_patterns:
        if isinstance(entry, URLResolver):
            yield from _patterns(entry) if entry.app_name != "api" else ()  # tests/test_api.py has those
        else:
            yield entry


ARGUMENTS: dict[str, list[Any]] = {
    "node-approve": [1],
    "node-again": [1],
    "deployment-restore": ["te1", 1],
    "key-edit": [1],
    "key-revoke": [1],
    "telemetry": ["node", 1],
    "job-log": ["00000000-0000-0000-0000-000000000000"],
    "conversation": [1],
    "conversation-messages": [1],
}
#: A viewer's own, to change as they like; tests/test_playground.py has what is refused there.
OWN = {"conversations", "conversation", "conversation-messages"}
OPEN = {"metrics", "sign-in", "sign-out", "language"}


def _address(pattern: URLPattern) -> str:
    name = str(pattern.name)
    wants_name = "name" in pattern.pattern.converters
    return reverse(name, args=ARGUMENTS.get(name, ["te1"] if wants_name else []))


def test_a_stranger_is_sent_to_sign_in_from_every_page() -> None:
    for pattern in _patterns(get_resolver()):
        if pattern.name not in OPEN:
            address = _address(pattern)
            response = Client().get(address)
            assert response.status_code == 302, pattern.name
            assert response["Location"] == f"{reverse('sign-in')}?next={address}"


def test_a_viewer_may_change_nothing(node: Node, deployment: Deployment) -> None:
    viewer = signed_in("viewer")
    tried = [pattern for pattern in _patterns(get_resolver()) if pattern.name not in OPEN | OWN]
    statuses = {str(pattern.name): viewer.post(_address(pattern)).status_code for pattern in tried}
    read_only = {"overview", "nodes", "node", "deployments", "deployment", "playground"}
    read_only |= {"clusters", "cluster", "deployment-history", "deployment-export", "job-log", "models",
                  "nodes-between", "usage", "usage-csv"}  # fmt: skip
    read_only |= {"deployment-commands", "telemetry", "telemetry-recent"}
    read_only |= {"node-flags"}
    read_only |= {"alerts", "alert-bell"}
    assert {name for name, status in statuses.items() if status == 405} == read_only
    assert {status for name, status in statuses.items() if name not in read_only} == {403}


@pytest.mark.parametrize("name", ["node-remove", "node-approve-key"])
def test_an_operator_may_not_do_what_only_an_admin_may(name: str, node: Node) -> None:
    assert signed_in("operator").post(reverse(name, args=["te1"])).status_code == 403


def test_a_user_in_no_group_is_a_viewer_and_a_superuser_an_admin(node: Node) -> None:
    assert "Remove" not in text_of(signed_in("nobody").get(node.get_absolute_url()))
    assert "Remove" in text_of(signed_in("superuser").get(node.get_absolute_url()))


def test_a_wrong_password_is_told_and_the_user_name_kept() -> None:
    response = Client().post(reverse("sign-in"), {"username": "mei", "password": "wrong"})
    assert "do not match an account" in text_of(response)
    assert 'value="mei"' in text_of(response)
    assert "wrong" not in text_of(response)


# --- empty states and contents ---


@pytest.mark.parametrize("name", PAGES)
def test_every_page_works_with_nothing_there(name: str, admin: Client) -> None:
    assert admin.get(reverse(name)).status_code == 200


def test_the_first_page_offers_the_demo_and_says_what_it_costs(admin: Client) -> None:
    page = text_of(admin.get(reverse("overview")))
    for words in (
        "Try a small model on this machine",
        "about 0.6 GiB",
        "about 3 to 5 minutes",
        "about 3 GiB",
    ):
        assert words in page
    assert reverse("node-new") in page


def test_the_demo_leads_to_its_deployment(
    admin: Client, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "try_demo", lambda by: deployment)
    response = admin.post(reverse("try-demo"), headers={"HX-Request": "true"})
    assert response["HX-Redirect"] == deployment.get_absolute_url()


def test_a_node_page_tells_its_runs_and_offers_their_logs(admin: Client, node: Node) -> None:
    run = Run.objects.create(story="prepare", about=node.subject, state="running")
    job = Job.objects.create(node=node, name="packages", state="running")
    kinds = ["environment", "packages"]
    Step.objects.create(run=run, stage=0, kind=kinds[0], node=node, state="skipped", reason="there already")
    Step.objects.create(run=run, stage=1, kind=kinds[1], node=node, state="running", job=job)
    page = text_of(admin.get(node.get_absolute_url()))
    assert "there already" in page
    assert f'<option value="{job.pk}" data-node="te1"' in page
    assert f'data-log="{job.pk}"' in page


def test_a_changed_host_key_shows_both_fingerprints(admin: Client, node: Node) -> None:
    Node.objects.update(offered_host_key=OTHER_KEY)
    page = text_of(admin.get(node.get_absolute_url()))
    assert HostKey(KEY).fingerprint in page
    assert HostKey(OTHER_KEY).fingerprint in page
    assert "approve the new key" in page


def test_a_key_that_changed_again_is_not_approved(
    admin: Client, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    Node.objects.update(offered_host_key=OTHER_KEY)
    approved: list[Node] = []
    monkeypatch.setattr(registration, "approve_new_key", lambda node, by: approved.append(node))
    address = reverse("node-approve-key", args=["te1"])
    assert admin.post(address, {"fingerprint": "SHA256:another"}).status_code == 409
    assert not approved
    assert admin.post(address, {"fingerprint": HostKey(OTHER_KEY).fingerprint}).status_code == 302
    assert approved == [node]


def test_a_deployment_page_says_how_to_call_it(admin: Client, deployment: Deployment) -> None:
    page = text_of(admin.get(deployment.get_absolute_url()))
    assert "http://testserver/v1/chat/completions" in page
    assert 'base_url="http://testserver/v1"' in page
    assert deployment.fresh().api_key.reveal() not in page


def test_what_happens_on_each_node_of_a_cluster_is_one_phase(admin: Client, deployment: Deployment) -> None:
    run = Run.objects.create(story="rollout", about=deployment.subject, state="running")
    steps = [("facts", "done"), ("room", "running"), ("room", "done"), ("serve", "waiting")]
    for number, (kind, state) in enumerate(steps):
        node = Node.objects.create(name=f"of-{number}", address=f"10.9.0.{number}")
        Step.objects.create(run=run, stage=["facts", "room", "serve"].index(kind), kind=kind, node=node, state=state)
    page = text_of(admin.get(deployment.get_absolute_url()))
    phases = page.partition('class="stepper"')[2].partition("</ol>")[0]
    assert re.findall(r"is-\w+(?= tone)", phases) == ["is-done", "is-busy", "is-todo"]
    assert phases.count("×2") == 1


def test_a_failed_deployment_shows_its_reason_and_a_next_step(admin: Client, deployment: Deployment) -> None:
    Deployment.objects.update(state="failed", reason="/data/none has no config.json.")
    page = text_of(admin.get(deployment.get_absolute_url()))
    assert "/data/none has no config.json." in page
    assert "then start again" in page


def test_a_hostile_name_in_a_row_is_shown_as_text(admin: Client, node: Node) -> None:
    Node.objects.update(reason="<script>alert(1)</script>", state="failed")
    page = text_of(admin.get(node.get_absolute_url()))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


# --- deployments ---

DEPLOY = {"source": "path", "path": "/data/models/qwen", "name": "qwen", "where": "node:te1", "extra": ""}


@pytest.fixture(autouse=True)
def no_model_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes here are no machines: what their models are cannot be read."""

    def unreadable(model: str, node: Node) -> ModelFiles:
        raise Problem(f"{node} cannot be reached.")

    monkeypatch.setattr(planning, "model_files", unreadable)


def test_options_reach_the_rollout_with_their_types(
    admin: Client, node: Node, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []

    def create(*arguments: Any) -> Deployment:
        made.append(arguments)
        return deployment

    monkeypatch.setattr(rollout, "create", create)
    extra = "--enforce-eager\nseed=1\n cpu-offload-gb = 0.5\nchat-template=/data/t.jinja"
    admin.post(reverse("deployment-new"), {**DEPLOY, "max_model_len": "4096", "extra": extra})
    name, model, on, port, options, _by = made[0]
    assert (name, model, on, port) == ("qwen", "/data/models/qwen", node, None)
    assert options == {
        "enforce-eager": True,
        "seed": 1,
        "cpu-offload-gb": 0.5,
        "chat-template": "/data/t.jinja",
        "max-model-len": 4096,
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": "models/qwen"}, "Type the absolute path"),
        ({"name": "Qwen 14B"}, "A name has small letters"),
        ({"port": "80"}, "A port here is a number from 1024 to 65535."),
        ({"extra": "rm -rf /"}, "is not the name of a vLLM option."),
        ({"extra": "api-key=mine"}, "The option api-key is set by Quarterdeck"),
    ],
)
def test_a_deployment_that_cannot_be_right_says_so(
    admin: Client, node: Node, change: dict[str, str], sentence: str
) -> None:
    response = admin.post(reverse("deployment-new"), {**DEPLOY, **change})
    assert response.status_code == 409
    assert sentence in text_of(response)
    assert not Deployment.objects.exists()


def test_a_port_in_use_is_told_beside_the_form(
    admin: Client, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*arguments: Any) -> Deployment:
        raise Problem("Port 20700 on te1 is taken by smollm2.", "Choose another port.")

    monkeypatch.setattr(rollout, "create", taken)
    response = admin.post(reverse("deployment-new"), {**DEPLOY, "port": "20700"})
    page = text_of(response)
    assert response.status_code == 409
    assert "Port 20700 on te1 is taken by smollm2." in page
    assert 'value="/data/models/qwen"' in page


@pytest.mark.parametrize("act", ["start", "stop", "delete"])
def test_an_act_that_is_refused_becomes_an_alert_of_the_page(
    act: str, admin: Client, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, act, refuse)
    address = reverse(f"deployment-{act}", args=[deployment.name])
    response = admin.post(address, headers={"HX-Request": "true"})
    assert response.status_code == 409
    assert response["HX-Retarget"] == "#alerts"
    assert "te1 refuses the password of root." in text_of(response)
    assert "<html" not in text_of(response)
    whole = admin.post(address)
    assert whole.status_code == 409
    assert "<html" in text_of(whole)


# --- playground and keys ---


def test_the_playground_prefers_a_deployment_that_answers(admin: Client, deployment: Deployment) -> None:
    Deployment.objects.create(name="a-draft", model="demo", cluster=deployment.cluster, port=20701)
    assert '<option value="smollm2" selected>' in text_of(admin.get(reverse("playground")))
    page = text_of(admin.get(reverse("playground"), {"model": "a-draft"}))
    assert '<option value="a-draft" selected>a-draft (draft)' in page
    assert "a-draft does not answer now: draft." in page


def served(node: Node, ended: datetime | None, **job: Any) -> list[Source]:
    """What the log viewer offers after a rollout whose server ended then."""
    run = Run.objects.create(story="rollout", about="deployment:1", state="done")
    server = Job.objects.create(node=node, name="vllm", service=True, exit_status=1, ended_at=ended, **job)
    for stage, (kind, its) in enumerate([("model", Job.objects.create(node=node, name="model", state="exited")),
                                         ("serve", server)]):
        Step.objects.create(run=run, stage=stage, kind=kind, node=node, job=its, state="done")
    return sources(stories(Run.objects.filter(pk=run.pk)), server)


def stopped(node: Node) -> Run:
    """A run that stopped a server there; it took a minute."""
    over = timezone.now() + timedelta(minutes=1)
    stop = Run.objects.create(story="stop", about="deployment:1", state="done", finished_at=over)
    Step.objects.create(run=stop, stage=0, kind="stop-server", node=node, state="done")
    return stop


def test_each_attempt_of_a_server_keeps_its_own_numbered_log(node: Node) -> None:
    first = served(node, timezone.now(), state="exited")
    again = served(node, timezone.now(), state="exited")
    titles = [[str(source.title) for source in found if source.job.name == "vllm"] for found in (first, again)]
    assert ["attempt" in title for (title,) in titles] == [False, True]
    assert titles[1][0].endswith("attempt 2")
    assert not any("attempt" in str(source.title) for source in again if source.job.name == "model")


def test_a_server_that_was_stopped_ended_as_asked_and_its_log_comes_first(node: Node) -> None:
    stop = stopped(node)
    first, model = served(node, stop.created_at, state="exited")
    assert (first.job.name, first.as_asked) == ("vllm", True)
    assert not model.as_asked


def test_a_server_that_ended_by_itself_did_not_end_as_asked(node: Node) -> None:
    stop = stopped(node)
    assert [one.as_asked for one in served(node, stop.created_at - timedelta(seconds=1), state="exited")] == [False] * 2


@pytest.mark.parametrize(("state", "shown"), [("ready", 1), ("degraded", 1), ("rolling_out", 1), ("stopped", 0)])
def test_only_what_uses_the_memory_stands_on_a_tile(
    state: str, shown: int, admin: Client, deployment: Deployment
) -> None:
    Deployment.objects.update(state=state)
    copy = {"stopped": "stopped", "rolling_out": "rolling_out"}.get(state, "ready")
    deployment.replicas.create(number=1, node=deployment.cluster.head, port=20700, state=copy)
    (host,) = admin.get("/").context["fleet"]["nodes"]
    assert host["serves"] == [deployment.name] * shown


def test_with_nothing_registered_an_admin_is_offered_the_demo_where_a_model_is_missing(admin: Client) -> None:
    for name in ("playground", "deployment-new"):
        assert reverse("try-demo") in text_of(admin.get(reverse(name)))
        assert reverse("try-demo") not in text_of(signed_in(f"operator-{name}").get(reverse(name)))


def test_a_key_is_shown_once(admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(owner: User, name: str, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
        return ApiKey.objects.create(owner=owner, name=name, prefix="qd-abc", digest="d"), "qd-abc-secret"

    monkeypatch.setattr(gateway_keys, "create", create)
    response = admin.post(reverse("keys"), {"name": "batch"})
    assert "export QUARTERDECK_KEY=qd-abc-secret" in text_of(response)
    assert response["Cache-Control"] == "no-store"
    assert "qd-abc-secret" not in text_of(admin.get(reverse("keys")))


def test_nobody_sees_or_revokes_the_key_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = User.objects.create_user("owner")
    key = ApiKey.objects.create(
        owner=owner, name="theirs", prefix="qd-x", digest="d", created_at=timezone.now()
    )
    operator = signed_in("operator")
    assert "theirs" not in text_of(operator.get(reverse("keys")))
    assert operator.post(reverse("key-revoke", args=[key.pk])).status_code == 404


# --- around every page ---


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere(admin: Client) -> None:
    policy = admin.get(reverse("overview"))["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "../../etc/passwd", "Europe", "\x00", "nowhere"])
def test_a_time_zone_cookie_may_hold_anything(zone: str, admin: Client) -> None:
    admin.cookies["tz"] = zone
    assert admin.get(reverse("overview")).status_code == 200


def test_times_are_shown_in_the_zone_of_the_browser(admin: Client, node: Node) -> None:
    moment = datetime(2026, 1, 1, 20, 30, tzinfo=UTC)
    Run.objects.create(story="prepare", about=node.subject, created_at=moment)
    admin.cookies["tz"] = "Asia/Shanghai"
    assert ">04:30</time>" in text_of(admin.get(reverse("overview")))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_is_in_the_page_before_any_script(theme: str) -> None:
    client = Client()
    client.cookies["theme"] = theme
    assert f'data-theme="{theme}"' in text_of(client.get(reverse("sign-in")))


def test_a_job_log_is_downloaded_byte_for_byte(
    admin: Client, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job.objects.create(node=node, name="packages")
    pieces = [b"one\r", b"\xe4\xbd", b"\xa0\n", b"\x1b[31mred"]
    monkeypatch.setattr(logs, "read_all", lambda job: iter(pieces))
    response = admin.get(reverse("job-log", args=[job.pk]))
    assert b"".join(response) == b"".join(pieces)
    assert response["Content-Disposition"] == f'attachment; filename="{job.pk}.log"'


def test_a_piece_of_a_log_says_where_it_begins(admin: Client, node: Node) -> None:
    job = Job.objects.create(node=node, name="packages", state="exited", log_size=8)
    job.archive.create(start=0, end=8, data=gzip.compress(b"one\ntwo\n"))
    answer = admin.get(reverse("job-log", args=[job.pk]), {"start": "4", "end": "7"})
    assert (answer.content, answer["X-Log-Start"]) == (b"two", "4")
    assert admin.get(reverse("job-log", args=[job.pk]), {"start": "5", "end": "5"}).content == b""


def test_a_host_out_of_reach_says_so_instead_of_an_empty_log(
    admin: Client, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(job: Job) -> Iterator[bytes]:
        raise Problem("te1 does not answer.", "Try again later.")
        yield b""

    monkeypatch.setattr(logs, "read_all", gone)
    job = Job.objects.create(node=node, name="packages")
    response = admin.get(reverse("job-log", args=[job.pk]))
    assert response.status_code == 409
    assert "te1 does not answer." in text_of(response)


def test_lists_take_the_same_number_of_queries_however_long_they_are(
    admin: Client, deployment: Deployment, django_assert_max_num_queries: Callable[[int], Any]
) -> None:
    for number in range(20):
        run = Run.objects.create(story="prepare", about=deployment.cluster.head.subject, state="done")
        Step.objects.create(run=run, stage=0, kind="packages", node=deployment.cluster.head, state="done")
        Deployment.objects.create(
            name=f"d{number}", model="demo", cluster=deployment.cluster, port=20800 + number
        )
    for name in ("overview", "nodes", "deployments", "playground"):
        with django_assert_max_num_queries(12):
            admin.get(reverse(name))
