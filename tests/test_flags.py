"""Which flags a node's vLLM accepts: asked once, kept by package set, and what is made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse

from deployments import accepted, dry_run
from deployments.flags import GONE, PROGRAM, Accepted, looked_at
from deployments.kept import AcceptedFlags
from nodes import tasks
from nodes.models import Node
from nodes.remote.host import Result
from nodes.remote.local import LocalHost
from tests.test_deployment_form import QWEN, add_node
from tests.test_pages import signed_in, text_of

ANSWER = {
    "version": "0.32.0",
    "options": {
        "--max-model-len": [], "--dtype": ["auto", "half", "bfloat16"], "-tp": [], "--tensor-parallel-size": [],
        "--enable-prefix-caching": [], "--no-enable-prefix-caching": [], "--api-key": [], "--runner": ["generate"],
    },
}  # fmt: skip
KNOWN = Accepted.from_json(ANSWER)


def test_a_flag_that_exists_stays_as_it_is() -> None:
    looked = looked_at({"max-model-len": 4096, "dtype": "half"}, KNOWN)
    assert (looked.options, looked.notes, looked.problems) == ({"max-model-len": 4096, "dtype": "half"}, (), ())


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max-modellen", 1, "vLLM 0.32.0 has no flag max-modellen. Did you mean max-model-len?"),
        ("xyzzy", 1, "Leave it out, or look its name up"),
        ("dtype", "bfloat", "dtype cannot be bfloat. Did you mean bfloat16?"),
        ("dtype", "int3", "It is one of auto, half, bfloat16."),
        ("rope-theta", "x", "vLLM has no flag rope-theta any more. It is a part of hf-overrides now."),
        ("guided-decoding-backend", 3, "It is a part of structured-outputs-config now."),
    ],
)
def test_a_flag_that_does_not_is_a_problem_with_what_was_meant(name: str, value: Any, sentence: str) -> None:
    looked = looked_at({name: value}, KNOWN)
    assert looked.options == {}
    assert sentence in str(looked.problems[0])


@pytest.mark.parametrize(
    ("name", "value", "sent"),
    [
        ("disable-log-requests", True, {}),
        ("swap-space", 4, {}),
        ("task", "generate", {"runner": "generate"}),
        ("task", "embed", {"runner": "pooling"}),
        ("task", "auto", {}),
        ("guided-decoding-backend", "xgrammar:no-fallback", {"structured-outputs-config": {"backend": "xgrammar"}}),
        ("rope-theta", 1e6, {"hf-overrides": {"rope_parameters": {"rope_theta": 1e6}}}),
        ("cuda-graph-sizes", [1, 2], {"cudagraph-capture-sizes": [1, 2]}),
        ("tp", 2, {"tensor-parallel-size": 2}),
    ],
)
def test_what_old_articles_name_is_translated_or_left_out(name: str, value: Any, sent: dict[str, Any]) -> None:
    for known in (KNOWN, None):
        looked = looked_at({name: value}, known)
        assert not looked.problems or (name == "task" and value == "auto")
        assert looked.options == sent
        assert bool(looked.notes) == (name in GONE and not looked.problems)


def test_an_older_vllm_keeps_the_flag_that_it_has() -> None:
    old = Accepted("0.10.0", {"disable-log-requests": ()})
    assert looked_at({"disable-log-requests": True}, old).options == {"disable-log-requests": True}


def test_the_list_is_without_what_quarterdeck_sets_and_without_negated_forms() -> None:
    assert [name for name, _ in KNOWN.listed] == [
        "dtype", "enable-prefix-caching", "max-model-len", "runner", "tensor-parallel-size",
    ]  # fmt: skip


def test_the_program_asks_whatever_vllm_is_installed(tmp_path: Path) -> None:
    for module in ("vllm", "vllm/utils", "vllm/entrypoints", "vllm/entrypoints/openai"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").touch()
    (tmp_path / "vllm/utils/argparse_utils.py").write_text(
        "import argparse\nprint('INFO noise')\nclass FlexibleArgumentParser(argparse.ArgumentParser): pass\n")
    (tmp_path / "vllm/entrypoints/openai/cli_args.py").write_text(
        "def make_arg_parser(parser):\n    parser.add_argument('--dtype', choices=['half'])\n    return parser\n")
    (tmp_path / "vllm-0.9.1.dist-info").mkdir()
    (tmp_path / "vllm-0.9.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.9.1\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, check=True, timeout=60)
    answer = accepted.answer_of(done.stdout.decode())
    assert Accepted.from_json(answer) == ("0.9.1", {"h": (), "help": (), "dtype": ("half",)})


@pytest.fixture
def node() -> Node:
    node = add_node("te1")
    node.facts_json["environment"] = {"python": "3.11.7", "lock": "cuda-0123 verified"}
    node.save()
    return node


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(tasks, "send", lambda task, *arguments: found.append(arguments))
    return found


@pytest.mark.django_db
def test_a_node_is_asked_once_in_the_background(valkey: str, node: Node, asked: list[Any]) -> None:
    assert accepted.of(node) is None
    assert accepted.of(node) is None
    assert asked == [(node.pk,)]


@pytest.mark.django_db
def test_a_node_that_is_not_prepared_is_not_asked(valkey: str, asked: list[Any]) -> None:
    assert accepted.of(add_node("te2")) is None
    assert asked == []


class Answering(LocalHost):
    """A host on which every program prints this."""

    def __init__(self, text: str) -> None:
        self.text = text

    def run(self, *_arguments: Any, **_named: Any) -> Result:
        return Result(0, self.text.encode(), b"")


@pytest.mark.django_db
@pytest.mark.parametrize(("printed", "kept"), [
    ('noise\n{"version": "1", "options": {"--x": []}}\n', 1), ("", 0), ("{}", 0), ("[]", 0),
    ('{"version": "1", "options": {}}', 0), ("3", 0),
])
def test_only_an_answer_is_kept(node: Node, monkeypatch: pytest.MonkeyPatch, printed: str, kept: int) -> None:
    monkeypatch.setattr(accepted, "shared_host", lambda node: Answering(printed))
    accepted.ask_flags(node.pk)
    accepted.ask_flags(node.pk)
    assert AcceptedFlags.objects.count() == kept


@pytest.mark.django_db
def test_the_form_says_what_the_flags_were_compared_with(valkey: str, node: Node) -> None:
    AcceptedFlags.objects.create(fingerprint="cuda-0123 verified", answer=ANSWER)
    operator = signed_in("operator")
    fields = {"source": "demo", "name": "a", "where": "node:te1", "extra": "max-modellen=1"}
    page = text_of(operator.post(reverse("deployment-plan"), fields))
    assert "Compared with vLLM 0.32.0 as installed on te1." in page
    assert "Did you mean max-model-len?" in page
    assert operator.post(reverse("deployment-new"), fields).status_code == 409
    listed = text_of(operator.get(reverse("node-flags", args=["te1"])))
    assert "enable-prefix-caching" in listed
    assert "auto half bfloat16" in listed


# --- what they mean together ---

WHY = "Total number of attention heads (9) must be divisible by tensor parallel size (2)."
REFUSED = json.dumps({"refused": f"Value error, {WHY}"})


@pytest.mark.parametrize(("printed", "verdict"), [
    (f"INFO x\n\n{REFUSED}\n", ("refused", WHY)),
    ('\n{"refused": "max_loras: Input should be greater than or equal to 1"}\n',
     ("refused", "max_loras: Input should be greater than or equal to 1")),
    ('\n{"refused": ""}\n', ("taken", "")),
])
def test_what_vllm_says_of_a_combination(printed: str, verdict: tuple[str, str]) -> None:
    assert dry_run.answer_of(printed) == verdict


@pytest.mark.parametrize("printed", ["", "Killed", "[]", "{}", "Traceback: no such model"])
def test_what_is_no_answer_to_that(printed: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        dry_run.answer_of(printed)


@pytest.mark.django_db
def test_the_vllm_of_a_node_is_asked_once_for_a_combination_and_the_form_says_what_it_said(
    valkey: str, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    Node.objects.filter(pk=node.pk).update(kind="local")
    asked: list[Any] = []
    monkeypatch.setattr(tasks, "send", lambda task, *words: asked.append(words) if task is dry_run.ask_vllm else None)
    fields = {"source": "path", "path": QWEN, "name": "x", "where": f"node:{node.name}", "extra": "max-loras=0"}

    def page() -> str:
        return text_of(operator.post(reverse("deployment-plan"), fields))

    operator = signed_in("operator")
    assert "is being asked whether it takes these options together." in page()
    assert 'hx-trigger="load delay:3s"' in page()
    ((pk, key, text),) = asked  # one thing at a time
    assert json.loads(text)["max-loras"] == 0
    monkeypatch.setattr(LocalHost, "run", lambda *_, **__: Result(0, f"INFO\n{REFUSED}".encode(), b""))
    dry_run.ask_vllm(pk, key, text)
    told = page()
    assert "refuses these options together: Total number of attention heads (9) must be divisible" in told
    assert 'hx-trigger="load delay:3s"' not in told
    assert len(asked) == 1

