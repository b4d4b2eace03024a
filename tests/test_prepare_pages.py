"""How nodes are prepared: what the form takes, what it remembers and hides, and many nodes with one click."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from controlplane.secrets import Secret
from nodes import mesh, preparation
from nodes.models import Link, Node, Run
from nodes.options import Options
from nodes.web.prepare_forms import PrepareForm

pytestmark = pytest.mark.django_db

HOW = reverse("nodes-how")
MIRROR = "https://u:secret@mirror.invalid/simple"


def client(role: str) -> Client:
    user = User.objects.create_user(role, password="harbour-light-7")
    user.groups.add(Group.objects.get_or_create(name=role)[0])
    made = Client()
    made.force_login(user)
    return made


@pytest.fixture
def operator() -> Client:
    return client("operator")


@pytest.fixture
def nodes() -> list[Node]:
    return [Node.objects.create(name=f"te{n}", address=f"10.0.0.{n}", user="u", state="ready") for n in range(1, 4)]


def form(known: Options | None = None, **data: Any) -> PrepareForm:
    return PrepareForm({"kind": "venv", **data}, known=known or Options())


def options(known: Options | None = None, **data: Any) -> Options:
    made = form(known, **data)
    assert made.is_valid(), made.errors
    return made.options()


def test_what_nobody_filled_in_is_what_always_happened() -> None:
    assert options() == Options()


def test_only_what_belongs_to_the_chosen_kind_is_kept() -> None:
    data: dict[str, Any] = {
        "conda": "/data/miniconda3/", "installer": "/tmp/m.sh", "python": "3.12.4", "environment": "/data/env"}
    assert options(**data) == Options()
    asked = options(**{**data, "kind": "conda"})
    assert asked == Options(kind="conda", path="/data/miniconda3", installer="/tmp/m.sh", python="3.12.4")
    assert options(**{**data, "kind": "existing"}) == Options(kind="existing", path="/data/env")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"kind": "existing"}, "environment"),
        ({"kind": "existing", "environment": "data/env"}, "environment"),
        ({"kind": "existing", "environment": "/data/\nenv"}, "environment"),
        ({"kind": "conda", "conda": "~/conda"}, "conda"),
        ({"kind": "conda", "python": "3.10"}, "python"),
        ({"kind": "conda", "python": "3.12; id"}, "python"),
        ({"kind": "conda", "installer": "ftp://x/y.sh"}, "installer"),
        ({"index": "mirror"}, "index"),
        ({"extra_index": "https://•••@elsewhere.invalid/simple"}, "extra_index"),
        ({"kind": "docker"}, "kind"),
        ({"index": "https://x/" + "a" * 1000}, "index"),
    ],
)
def test_what_cannot_be_right_is_named_at_its_field(data: dict[str, Any], field: str) -> None:
    assert list(form(**data).errors) == [field]


def test_a_password_in_an_address_is_not_shown_and_stays_where_nobody_changed_it() -> None:
    known = Options(index=MIRROR)
    shown = PrepareForm(known=known)
    assert "secret" not in shown.as_p()
    assert shown["index"].value() == "https://•••@mirror.invalid/simple"
    assert options(known, index=shown["index"].value()).index == MIRROR
    assert options(known, index="").index == ""


def test_the_choice_is_remembered_encrypted_and_shown_again(operator: Client, nodes: list[Node]) -> None:
    answer = operator.post(HOW, {"node": ["te1", "te2"], "kind": "venv", "index": MIRROR, "base": "on"})
    assert answer.status_code == 302
    assert answer["Location"] == reverse("nodes")
    for node in (nodes[0].fresh(), nodes[1].fresh()):
        assert preparation.options_of(node) == Options(index=MIRROR, base=True)
        assert [step.kind for step in Run.objects.get(about=node.subject).steps.all()] == [
            "facts", "base", "environment", "packages", "verification", "facts"]
    assert not Run.objects.filter(about=nodes[2].subject).exists()
    page = operator.get(HOW, {"node": "te1"}).content.decode()
    assert "secret" not in page
    assert "mirror.invalid" in page


def test_a_form_with_a_mistake_prepares_nothing(operator: Client, nodes: list[Node]) -> None:
    answer = operator.post(HOW, {"node": "te1", "kind": "existing"})
    assert answer.status_code == 409
    assert "Type the directory of the environment" in answer.content.decode()
    assert not Run.objects.exists()


def test_nodes_that_give_no_root_are_named_before_they_are_prepared(operator: Client, nodes: list[Node]) -> None:
    Node.objects.filter(name="te1").update(sudo="passwordless")
    Node.objects.filter(name="te3").update(sudo="password", sudo_password=Secret("x"))
    page = operator.get(HOW, {"node": ["te1", "te2", "te3"]}).content.decode()
    assert "te2 gives no root" in page


def test_one_click_prepares_all_that_are_ticked(operator: Client, nodes: list[Node]) -> None:
    Node.objects.filter(name="te2").update(preparation=Secret(Options(kind="existing", path="/e").to_text()))
    preparation.check(nodes[0], None)  # something else is being done there
    answer = operator.post(reverse("nodes-prepare"), {"node": ["te1", "te2", "te3"]}, follow=True)
    page = answer.content.decode()
    assert "te1: Something else is already being done here." in page
    assert "2 nodes are being prepared." in page
    assert preparation.options_of(nodes[1].fresh()).kind == "existing"
    assert [node.fresh().state for node in nodes] == ["checking", "preparing", "preparing"]


def test_nothing_ticked_is_said(operator: Client, nodes: list[Node]) -> None:
    answer = operator.post(reverse("nodes-prepare"), {}, headers={"HX-Request": "true"})
    assert answer.status_code == 409
    assert "No node is selected." in answer.content.decode()


def test_what_is_ticked_on_the_list_is_asked_about(operator: Client, nodes: list[Node]) -> None:
    for asked, page in (("nodes-how", "nodes-how"), ("nodes-look", "nodes-between")):
        answer = operator.post(reverse(asked), {"node": ["te1", "te2"]})
        assert answer["Location"] == f"{reverse(page)}?node=te1&node=te2"


def test_a_viewer_sees_what_is_between_nodes_and_begins_nothing(nodes: list[Node]) -> None:
    viewer = client("viewer")
    for one, other in itertools.permutations(nodes, 2):
        Link.objects.create(source=one, target=other, rtt_ms=0.2, gbps=9.0 + one.pk % 2, ports=400, closed=[20605],
                            measured_at=timezone.now(), trusted=one == nodes[0])  # fmt: skip
    page = viewer.get(reverse("nodes-between"), {"node": ["te1", "te2", "te3"]}).content.decode()
    assert page.count("1 of 400 ports closed") == 6
    assert page.count("does not sign in") == 4
    assert "The slowest way has 9.0 Gbit/s" in page
    for name in ("nodes-how", "nodes-prepare", "nodes-look", "nodes-measure"):
        assert viewer.post(reverse(name), {"node": ["te1", "te2"]}).status_code == 403
    assert not Run.objects.exists()


def test_measuring_is_a_run_about_these_nodes(operator: Client, nodes: list[Node]) -> None:
    answer = operator.post(reverse("nodes-measure"), {"node": ["te1", "te2", "te3"]})
    assert answer["Location"] == f"{reverse('nodes-between')}?node=te1&node=te2&node=te3"
    run = Run.objects.get()
    assert run.about == mesh.subject(nodes)
    assert [(step.stage, step.kind) for step in run.steps.all()] == [
        (0, "mesh"), (1, "mesh"), (2, "mesh"), (3, "trust-check"), (3, "trust-check"), (3, "trust-check")]
    page = operator.get(answer["Location"]).content.decode()
    assert "Measuring" in page
