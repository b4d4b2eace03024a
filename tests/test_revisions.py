"""Revisions of a deployment: every change is kept and can be gone back to; a file makes it what it says."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from controlplane.problems import Problem
from deployments import aliases, model_files, revisions
from deployments.models import Deployment, Replica
from deployments.rollout import effects, placing
from deployments.rollout import stories as rollout
from deployments.rollout.prediction import compared
from deployments.rollout.replacing import Way
from deployments.spec import Spec, from_yaml
from nodes.models import Node, Run
from nodes.remote.local import LocalHost
from tests.test_api import Program, error_of
from tests.test_deployment_form import QWEN, add_node
from tests.test_pages import signed_in, text_of

pytestmark = pytest.mark.django_db

YAML = f"""
name: qwen
model: {QWEN}
node: atlas
options:
  max-model-len: 8192
"""


@pytest.fixture(autouse=True)
def files_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "shared_host", lambda node: LocalHost())


@pytest.fixture
def atlas() -> Node:
    return add_node("atlas", gpus=4)


@pytest.fixture
def qwen(atlas: Node) -> Deployment:
    return revisions.create(from_yaml(YAML)[0], None, "first")


def spec(**changed: Any) -> Spec:
    return Spec.from_dict({**yaml.safe_load(YAML), **changed})


# --- changing and going back ---


def test_a_change_is_a_revision_with_its_author_and_difference(qwen: Deployment) -> None:
    mei = User.objects.create_user("mei")
    assert revisions.change(qwen, spec(options={"max-model-len": 4096, "seed": 1}), mei, "shorter")

    first, second = qwen.revisions.order_by("number")
    assert (second.number, second.created_by, second.note) == (2, mei, "shorter")
    assert revisions.difference(first.spec, second.spec) == [("max-model-len", 8192, 4096), ("seed", None, 1)]
    qwen.refresh_from_db()
    assert qwen.revision == 2
    assert qwen.options == {"max-model-len": 4096, "seed": 1}
    assert qwen.plan["flags"]["max-model-len"] == 4096


def test_the_same_again_is_no_revision(qwen: Deployment) -> None:
    assert not revisions.change(qwen, spec(), None)
    assert qwen.revisions.count() == 1


def test_going_back_is_a_new_revision_with_the_old_content(qwen: Deployment) -> None:
    revisions.change(qwen, spec(options={}), None)
    assert revisions.roll_back(qwen, 1, None)
    assert [one.number for one in qwen.revisions.all()] == [3, 2, 1]
    assert qwen.revisions.get(number=3).spec == qwen.revisions.get(number=1).spec
    assert qwen.options == {"max-model-len": 8192}


def test_a_deployment_from_before_there_were_revisions_keeps_what_it_was(atlas: Node) -> None:
    old = rollout.create("old", QWEN, atlas, None, {"max-model-len": 8192}, None)
    revisions.change(old, spec(name="old", options={}), None)
    assert [one.spec.get("options") for one in old.revisions.order_by("number")] == [{"max-model-len": 8192}, None]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "other"}, "keeps its name"),
        ({"options": {"tensor-parallel-size": 3}}, "40 attention heads cannot be divided by 3"),
        ({"node": "gone"}, "There is no node gone. There are: atlas"),
        ({"port": 20999}, "qwen runs, and another place or port needs it stopped"),
    ],
)
def test_what_cannot_be_changed_is_told_and_nothing_is(
    qwen: Deployment, change: dict[str, Any], sentence: str
) -> None:
    Deployment.objects.update(state="ready")
    qwen.refresh_from_db()
    with pytest.raises(Problem, match=sentence):
        revisions.change(qwen, spec(**change), None)
    assert qwen.fresh().revision == 1


def test_a_port_that_another_deployment_has_is_refused(qwen: Deployment) -> None:
    other = revisions.create(spec(name="other"), None)
    with pytest.raises(Problem, match="belongs to the deployment other"):
        revisions.change(qwen, spec(port=other.port), None)


def test_a_file_that_takes_anothers_port_is_refused_as_a_whole(qwen: Deployment, tmp_path: Path) -> None:
    text = f"{YAML.replace('qwen', 'a', 1)}---{YAML.replace('qwen', 'b', 1)}port: {qwen.port}"
    with pytest.raises(CommandError, match="belongs to the deployment qwen"):
        applied(tmp_path, text)
    assert Deployment.objects.get() == qwen


def test_a_clone_has_a_free_name_and_no_port(qwen: Deployment) -> None:
    revisions.create(spec(name="qwen-2"), None)
    like = revisions.clone(qwen)
    assert (like.name, like.port, like.options) == ("qwen-3", None, {"max-model-len": 8192})


# --- the pages ---


def test_the_edit_form_saves_a_revision(qwen: Deployment) -> None:
    operator = signed_in("operator")
    page = text_of(operator.get(reverse("deployment-edit", args=["qwen"])))
    assert 'value="8192"' in page
    fields = {
        "source": "path", "path": QWEN, "name": "qwen", "where": "node:atlas", "max_model_len": "2048", "extra": "",
        "note": "less",
    }  # fmt: skip
    assert operator.post(reverse("deployment-edit", args=["qwen"]), fields).status_code == 302
    assert qwen.fresh().options == {"max-model-len": 2048}
    history = text_of(operator.get(reverse("deployment-history", args=["qwen"])))
    assert "<del>8192</del>" in history
    assert "<ins>2048</ins>" in history


def test_going_back_is_told_before_and_only_saved_if_so_wished(qwen: Deployment) -> None:
    revisions.change(qwen, spec(options={"max-model-len": 2048}), None)
    operator, back = signed_in("operator"), reverse("deployment-restore", args=["qwen", 1])
    page = text_of(operator.get(back))
    assert "<del>2048</del>" in page
    assert "Go back and roll out" in page
    assert "When this is applied" not in page
    operator.post(back)
    assert (qwen.fresh().options, qwen.fresh().state) == ({"max-model-len": 8192}, "draft")
    assert "Nothing: it is that already." in text_of(operator.get(back))
    assert "has no revision 9" in text_of(operator.get(reverse("deployment-restore", args=["qwen", 9])))


# --- what is saved becomes what runs ---


SMALL = YAML.replace("qwen2.5-14b", "qwen2.5-3b").replace("options:", "copies: 1\noptions:\n  tensor-parallel-size: 1")


@pytest.fixture
def running(atlas: Node) -> Deployment:
    """One server of revision 1 on one GPU of four, ready."""
    made = revisions.create(from_yaml(SMALL)[0], None)
    (server,) = placing.place(made)
    Replica.objects.filter(pk=server.pk).update(state="ready")
    Deployment.objects.filter(pk=made.pk).update(state="ready")
    return made.fresh()


def small(**options: Any) -> Spec:
    return replace(from_yaml(SMALL)[0], options={"tensor-parallel-size": 1, **options})


def replacements() -> list[str]:
    return list(Run.objects.filter(story="replace").values_list("about", flat=True))


def test_going_back_replaces_what_runs_and_says_before_whether_there_is_a_gap(running: Deployment) -> None:
    revisions.change(running, small(**{"max-model-len": 2048}), None)
    Replica.objects.update(revision=2)
    operator, back = signed_in("operator"), reverse("deployment-restore", args=["qwen", 1])
    page = text_of(operator.get(back))
    assert "When this is applied:" in page
    assert "There is no gap: new servers start beside the old ones." in page
    assert operator.post(back, {"start": "1"})["Location"] == running.get_absolute_url()
    assert replacements() == [running.subject]
    assert running.replicas.order_by("number").values_list("revision", flat=True)[1] == 3


def test_the_gap_is_that_of_the_new_specification(running: Deployment) -> None:
    """The server that runs has one GPU of four; one that wants all of them leaves no room beside it."""
    wide = small(**{"tensor-parallel-size": 4})
    assert effects.preview(wide).way is Way.AT_ONCE
    assert effects.preview(small(seed=1)).way is Way.BESIDE
    assert effects.preview(small(**{"max-model-len": 8192})).way is None
    assert not running.revisions.filter(number=2).exists()


def test_there_and_back_again_has_nothing_to_replace(running: Deployment) -> None:
    revisions.change(running, small(), None)
    assert effects.outdated(running)
    revisions.roll_back(running, 1, None)
    assert not effects.outdated(running)
    assert effects.take(running, None) is None
    assert running.fresh().revision == 3


def test_what_is_being_rolled_out_is_not_replaced_and_what_was_saved_stays(running: Deployment) -> None:
    Deployment.objects.update(state="rolling_out")
    revisions.change(running.fresh(), small(), None)
    with pytest.raises(Problem, match="qwen is rolling out with its old settings now") as problem:
        effects.take(running.fresh(), None)
    assert "The new ones are saved." in problem.value.next_step
    operator = signed_in("operator")
    answer = operator.post(reverse("deployment-restore", args=["qwen", 2]), {"start": "1"}, follow=True)
    assert "with its old settings now." in text_of(answer)


def test_an_import_replaces_what_runs_unless_it_is_only_saved(running: Deployment) -> None:
    operator, text = signed_in("operator"), SMALL.replace("8192", "2048")
    told = text_of(operator.post(reverse("import-preview"), {"text": text + "---\n" + SMALL.replace("qwen", "b", 1)}))
    assert "There is no gap" in told
    assert "<ins>2048</ins>" in told
    assert "It does not run: it is rolled out only if that is ticked." in told
    assert "is not a field" in text_of(operator.post(reverse("import-preview"), {"text": "nam: e"}))
    assert "There is no node none" in text_of(
        operator.post(reverse("import-preview"), {"text": text.replace("atlas", "none")}))
    assert Deployment.objects.get().revision == 1

    operator.post(reverse("deployment-import"), {"text": text, "save": "1"})
    assert (running.fresh().revision, replacements()) == (2, [])
    operator.post(reverse("deployment-import"), {"text": text})
    assert (running.fresh().revision, replacements()) == (2, [running.subject])


def test_a_clone_fills_the_form(qwen: Deployment) -> None:
    page = text_of(signed_in("operator").get(reverse("deployment-new") + "?like=qwen"))
    assert 'value="qwen-2"' in page


def test_what_is_exported_is_imported_as_it_was(qwen: Deployment) -> None:
    operator = signed_in("operator")
    text = operator.get(reverse("deployment-export", args=["qwen"])).content.decode()
    operator.post(reverse("deployment-import"), {"text": text})
    assert qwen.revisions.count() == 1
    text = text.replace("qwen\n", "second\n", 1).replace("port", "# port")
    operator.post(reverse("deployment-import"), {"text": text})
    assert Deployment.objects.get(name="second").options == {"max-model-len": 8192}


def test_an_import_that_cannot_be_does_nothing_at_all(atlas: Node) -> None:
    response = signed_in("operator").post(reverse("deployment-import"), {"text": f"{YAML}---\nname: b\nmodell: demo\n"})
    assert response.status_code == 409
    assert "“modell” is not a field of a deployment." in text_of(response)
    assert "Did you mean model?" in text_of(response)
    assert not Deployment.objects.exists()


def test_viewers_see_the_history_and_change_nothing(qwen: Deployment) -> None:
    viewer: Client = signed_in("viewer")
    page = text_of(viewer.get(reverse("deployment-history", args=["qwen"])))
    assert "Go back" not in page
    assert viewer.post(reverse("deployment-restore", args=["qwen", 1])).status_code == 403


# --- an alias's name ---


@pytest.fixture
def aliased(qwen: Deployment) -> Deployment:
    """A deployment that requests also know as gpt-4o."""
    aliases.add(qwen, "gpt-4o", None)
    return qwen


def test_no_deployment_takes_the_name_of_an_alias(aliased: Deployment, tmp_path: Path) -> None:
    sentence = "gpt-4o is an alias of qwen already. Remove it there first, or choose another name."
    taken = spec(name="gpt-4o", port=20901)
    refusals: list[Callable[[], object]] = [
        lambda: revisions.check(taken), lambda: revisions.apply(taken, None, ""), lambda: revisions.create(taken, None)
    ]
    for refuses in refusals:
        with pytest.raises(Problem) as refused:
            refuses()
        assert str(refused.value) == sentence
    (tmp_path / "file.yaml").write_text(YAML.replace("name: qwen", "name: gpt-4o"))
    with pytest.raises(CommandError, match="is an alias of qwen already"):
        call_command("apply", "-f", str(tmp_path / "file.yaml"))
    said = Program(name="robot").call("POST", "deployments", name="gpt-4o", model=QWEN, node="atlas")
    assert error_of(said, 409) == sentence
    page = signed_in("operator").post(reverse("deployment-new"), {"name": "GPT-4o"})
    assert sentence in text_of(page)
    assert [one.name for one in Deployment.objects.all()] == ["qwen"]


def test_a_clones_name_is_no_alias_either(aliased: Deployment) -> None:
    aliases.add(aliased, "qwen-2", None)
    assert revisions.clone(aliased).name == "qwen-3"


# --- manage.py apply ---


def applied(tmp_path: Path, text: str, *options: str) -> str:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    out = io.StringIO()
    call_command("apply", "-f", str(path), *options, stdout=out)
    return out.getvalue()


def test_apply_makes_changes_and_leaves_alone(atlas: Node, tmp_path: Path) -> None:
    assert applied(tmp_path, YAML) == "qwen: created (revision 1)\n"
    assert applied(tmp_path, YAML) == "qwen: unchanged\n"
    changed = applied(tmp_path, YAML.replace("8192", "4096"))
    assert changed == "qwen: changed (revision 2)\n  max-model-len: 8192 → 4096\n"
    assert "4096 → 8192" in applied(tmp_path, YAML, "--check")
    assert Deployment.objects.get().revision == 2


def test_apply_starts_what_does_not_run_only_if_told_to(atlas: Node, tmp_path: Path) -> None:
    assert applied(tmp_path, YAML) == "qwen: created (revision 1)\n"
    assert Deployment.objects.get().state == "draft"
    assert applied(tmp_path, YAML, "--start") == "qwen: unchanged\nqwen is rolled out.\n"
    assert Deployment.objects.get().state == "rolling_out"
    assert applied(tmp_path, YAML, "--start") == "qwen: unchanged\n"


def test_apply_replaces_what_runs_once_and_also_when_it_was_only_saved(running: Deployment, tmp_path: Path) -> None:
    shorter = SMALL.replace("8192", "4096")
    told = applied(tmp_path, shorter, "--check")
    assert told.startswith("qwen: would be changed\n  max-model-len: 8192 → 4096\n  There is no gap")
    assert applied(tmp_path, shorter, "--no-restart") == (
        "qwen: changed (revision 2)\n  max-model-len: 8192 → 4096\n")
    assert replacements() == []
    assert applied(tmp_path, shorter) == "qwen: unchanged\nThe servers of qwen are replaced.\n"
    assert replacements() == [running.subject]


def test_apply_saves_everything_and_names_what_cannot_run_now(running: Deployment, tmp_path: Path) -> None:
    Deployment.objects.update(state="rolling_out")
    with pytest.raises(CommandError, match="qwen: qwen is rolling out with its old settings now") as refused:
        applied(tmp_path, SMALL.replace("8192", "4096") + "---\n" + SMALL.replace("qwen", "b", 1), "--start")
    assert refused.value.returncode == 1
    assert [(one.name, one.revision, one.state) for one in Deployment.objects.all()] == [
        ("b", 1, "rolling_out"), ("qwen", 2, "rolling_out")]


BAD = [
    ("", "describes no deployment"),
    ("- 1", "names with values"),
    ("name: [", "line 1"),
    ("name: a\nname: b", "stands there twice"),
    ("a: &x [1]\nb: *x", "anchors and aliases"),
    ("name: a\nmodel: demo\nnode: atlas\noptons: {}", "Did you mean options?"),
    ("name: a\nmodel: demo\nnode: atlas\nreplicas: 2", "Did you mean copies?"),
    ("name: A B\nmodel: demo\nnode: atlas", "cannot be a deployment's name"),
    ("name: new\nmodel: demo\nnode: atlas", "cannot be a deployment's name"),
    ("name: a\nmodel: x\nnode: atlas", "neither demo, nor an absolute path"),
    ("name: a\nmodel: demo", "a cluster or a node"),
    ("name: a\nmodel: demo\nnode: atlas\ncluster: b", "a cluster or a node"),
    ("name: a\nmodel: demo\nnode: nowhere", "There is no node nowhere."),
    ("name: a\nmodel: demo\ncluster: nowhere", "There is no cluster nowhere."),
    ("name: a\nmodel: demo\nnode: atlas\ncopies: 0", "copies must be a whole number from 1 to 64"),
    ("name: a\nmodel: demo\nnode: atlas\nport: yes", "port must be a whole number"),
    ("name: a\nmodel: demo\nnode: atlas\nexecutor: k8s", "the executor is ray or mp"),
    ("name: a\nmodel: demo\nnode: atlas\noptions: [1]", "options must be names"),
    ("name: a\nmodel: demo\nnode: atlas\noptions: {seed: 2026-01-01}", "The value of seed"),
    ("name: a\nmodel: demo\nnode: atlas\noptions: {seed: .nan}", "The value of seed"),
    ("name: a\nmodel: demo\nnode: atlas\noptions: {api-key: x}", "is set by Quarterdeck"),
    ("name: a\nmodel: demo\nnode: atlas\noptions: {cuda-graph-sizes: 8}", "no flag cuda-graph-sizes any more"),
    ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ("name: a\nmodel: demo\nnode: atlas\n---\nname: a\nmodel: demo\nnode: atlas", "describes a twice"),
    ("[" * 5000, "nest too deep"),
    ("x" * (256 * 1024 + 1), "larger than 256 KiB"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_is_one_sentence_and_status_2(atlas: Node, tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(CommandError) as refused:
        applied(tmp_path, text)
    assert refused.value.returncode == 2
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not Deployment.objects.exists()


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be read"):
        call_command("apply", "-f", str(tmp_path / "none.yaml"))
    (tmp_path / "file.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(CommandError, match="is not text in UTF-8"):
        call_command("apply", "-f", str(tmp_path / "file.yaml"))


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.integers() | st.booleans() | TEXT, max_size=4))
def test_any_specification_comes_back_from_its_file(options: dict[str, Any]) -> None:
    kept = {name: value for name, value in options.items() if not (isinstance(value, str) and value.startswith("-"))}
    kept = {name: value for name, value in kept.items() if name not in ("model", "host", "port", "uds", "config")}
    made = Spec("a", "/data/m", node="te1", copies=2, executor="mp", port=20940, options=kept)
    assert from_yaml(made.to_yaml()) == [made]


@given(st.text(max_size=60))
def test_no_text_breaks_the_reading(text: str) -> None:
    try:
        assert from_yaml(text)
    except Problem as problem:
        assert problem.what


# --- the prediction ---


def test_the_prediction_stands_beside_what_was_measured(qwen: Deployment) -> None:
    rows = compared(qwen.plan, {"weights_gib": 6.9, "kv_tokens": 1000, "kv_gib": 11.5})
    assert [row.measured for row in rows] == ["6.90 GiB", "11.50 GiB", "1,000", ""]
    assert abs(rows[0].percent or 99) < 2
    assert rows[2].is_far
    assert rows[3].difference == ""
    assert compared({}, {"weights_gib": 6.9}) == []
