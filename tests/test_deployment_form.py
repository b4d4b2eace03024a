"""The form of a deployment and its plan: what it stands on, what it refuses, what it keeps."""

from __future__ import annotations

import html
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from controlplane.problems import Problem
from controlplane.secrets import Secret
from deployments import model_files, planning, revisions
from deployments.models import Deployment
from deployments.rollout import placing, serving
from deployments.spec import Spec
from deployments.web import command_page
from deployments.web.forms import initial, parse_flags, written_flags
from nodes.models import Cluster, Link, Node
from nodes.remote.command import script
from nodes.remote.local import LocalHost
from nodes.telemetry import store
from tests.plans import HERE
from tests.test_pages import signed_in, text_of

pytestmark = pytest.mark.django_db

GIB = 1 << 30
A10 = {"name": "NVIDIA A10", "memory_total_mib": 23028, "compute_capability": "8.6"}
QWEN = str(HERE / "qwen2.5-14b")


def add_node(name: str, gpus: int = 1, **more: Any) -> Node:
    facts: dict[str, Any] = {"home": "/root", "gpus": [{"index": index, **A10, **more} for index in range(gpus)]}
    facts |= {"memory_total": 64 * GIB, "memory_available": 32 * GIB}
    return Node.objects.create(name=name, address=f"{name}.lab", user="root", state="ready", facts_json=facts)


@pytest.fixture
def four() -> Cluster:
    """The article's four hosts with one A10 each."""
    nodes = [add_node(f"te{i}") for i in range(1, 5)]
    cluster = Cluster.objects.create(name="four-a10", head=nodes[0])
    Node.objects.update(cluster=cluster)
    return cluster


@pytest.fixture(autouse=True)
def files_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node's files are this machine's."""
    monkeypatch.setattr(model_files, "shared_host", lambda node: LocalHost())


@pytest.fixture
def operator() -> Client:
    return signed_in("operator")


def fields(**changed: Any) -> dict[str, Any]:
    plain = {"source": "path", "path": QWEN, "name": "qwen", "where": "cluster:four-a10", "layout": "plan", "extra": ""}
    return {**plain, **changed}


def planned(operator: Client, **changed: Any) -> str:
    response = operator.post(reverse("deployment-plan"), fields(**changed))
    assert response.status_code == 200
    return text_of(response)


# --- the plan beside the form ---


def test_the_plan_names_layout_gpus_and_reasons(operator: Client, four: Cluster) -> None:
    page = planned(operator, name="")  # nobody has typed a name yet
    assert "fits" in page
    assert "one copy on 4 pipeline stages, 1 GPU each" in page
    assert "layers 36–47" in page
    assert "tensor parallelism would talk twice in each of the 48 layers" in page
    assert "40 attention heads cannot be divided by 3." in page


def test_an_impossible_wish_is_refused_with_the_nearest_that_fits(operator: Client, four: Cluster) -> None:
    wish = {"layout": "hand", "tensor_parallel_size": "3"}
    page = planned(operator, **wish)
    assert "does not fit" in page
    assert "The nearest that fits: tensor-parallel-size=2, pipeline-parallel-size=2" in page

    response = operator.post(reverse("deployment-new"), fields(**wish))
    assert response.status_code == 409
    assert "40 attention heads cannot be divided by 3." in text_of(response)
    assert "The nearest that fits" in text_of(response)
    assert not Deployment.objects.exists()


def test_a_layout_by_hand_counts_only_while_it_is_chosen(operator: Client, four: Cluster) -> None:
    assert "4 pipeline stages" in planned(operator, tensor_parallel_size="3")
    assert "2 pipeline stages, 2 GPUs each" in planned(
        operator, layout="hand", tensor_parallel_size="2", pipeline_parallel_size="2")


def test_a_model_that_cannot_be_read_is_told_and_no_reason_to_refuse(operator: Client, four: Cluster) -> None:
    assert "There is no directory /data/models/none on te1." in planned(operator, path="/data/models/none")
    assert operator.post(reverse("deployment-new"), fields(path="/data/models/none")).status_code == 302
    assert Deployment.objects.get().plan == {}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"extra": "--disable-log-requests"}, "disable-log-requests is gone and is left out."),
        ({"extra": "task=embed"}, "task is gone: it is passed on as runner=pooling."),
        ({"extra": "cuda-graph-sizes=8"}, "vLLM has no flag cuda-graph-sizes any more."),
        ({"max_model_len": "3"}, "Longest context"),
        ({"max_model_len": "200000"}, "max-model-len"),
        ({"where": "node:gone"}, "Runs on"),
        ({"path": "relative"}, "Type the absolute path"),
        ({"source": "hub", "hub_id": ""}, "is not the id of a model on Hugging Face"),
    ],
)
def test_what_is_wrong_is_told_while_somebody_types(
    operator: Client, four: Cluster, change: dict[str, str], sentence: str
) -> None:
    assert sentence in planned(operator, **change)


def test_the_plan_speaks_chinese(operator: Client, four: Cluster) -> None:
    operator.cookies["django_language"] = "zh-hans"
    page = planned(operator)
    assert "流水线" in page
    assert "The weights take" not in page


def test_a_longer_context_by_overriding_the_config_is_planned_with(operator: Client, four: Cluster) -> None:
    assert "The model allows 131,072 tokens" in planned(operator, max_model_len="262144")
    longer = '{"max_position_embeddings": 262144, "rope_parameters": {"rope_type": "yarn", "factor": 2}}'
    assert "The model allows" not in planned(operator, max_model_len="262144", extra=f"hf-overrides={longer}")


def test_viewers_may_not_plan(four: Cluster) -> None:
    assert signed_in("viewer").post(reverse("deployment-plan"), fields()).status_code == 403


# --- what it stands on ---


def say(node: Node, sample: dict[str, Any]) -> None:
    store.add([store.Entry(node.pk, "s", json.dumps(sample))])


def test_memory_of_this_second_goes_before_the_facts(valkey: str, four: Cluster) -> None:
    node = four.head
    say(node, {"t": time.time(), "mem": [1, 2], "gpus": [[0, 5000, 23028, 1, 50, 60]]})
    ground = planning.ground([node])
    assert ground.live
    assert ground.hosts[0].gpus[0].memory_used_mib == 5000

    say(node, {"t": time.time() - 3600, "mem": [1, 2], "gpus": []})
    ground = planning.ground([node])
    assert not ground.live
    assert ground.hosts[0].gpus[0].memory_used_mib == 0


def test_a_gpu_that_another_deployment_has_is_not_planned_with(four: Cluster) -> None:
    other = Deployment.objects.create(name="other", model="demo", cluster=four, port=20940, state="ready")
    other.replicas.create(number=1, node=four.head, port=20940, state="ready", placement=[{"host": "te2", "gpu": 0}])
    spec = Spec("qwen", QWEN, cluster="four-a10")

    found = planning.plan_for(spec)
    assert found.plan is not None
    assert {place.host for place in found.plan.placement} == {"te1", "te3", "te4"}
    other.replicas.update(placement=[{"host": f"te{i}", "gpu": 0} for i in range(1, 5)])
    full = planning.plan_for(spec)
    assert full.impossible is not None
    assert "It fits with TP=1, PP=4 once other processes have freed the GPUs' memory." in str(full.impossible)
    own = planning.plan_for(spec, besides=other).plan  # what is being changed may use its own GPUs
    assert own is not None
    assert len(own.placement) == 4


def test_a_model_is_read_once_and_again_when_it_changes(
    valkey: str, four: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_FRESH", 0)
    config = json.loads((HERE / "qwen2.5-14b" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_files.model_files(str(tmp_path), four.head).config == config
    assert model_files.model_files(str(tmp_path), four.head).config == config
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 12}))
    assert model_files.model_files(str(tmp_path), four.head).config["num_hidden_layers"] == 12


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "has config.json"),
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "hidden_size"),
        ('{"hidden_size": 1e999}', "hidden_size"),
        ("x" * (1 << 20) + "x", "too large"),
    ],
)
def test_a_config_that_is_none_is_told_in_a_sentence(
    four: Cluster, tmp_path: Path, content: str | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(Problem) as told:
        _ = model_files.model_files(str(tmp_path), four.head).model()
    assert sentence in str(told.value) or content is None


def test_the_demo_models_geometry_is_known_before_it_is_fetched(four: Cluster) -> None:
    model = model_files.model_files("demo", four.head).model()
    assert model.parameters == 134_515_008


# --- what is kept ---


def test_the_plan_is_kept_on_the_deployment(operator: Client, four: Cluster) -> None:
    operator.post(reverse("deployment-new"), fields(extra="disable-log-requests\nseed=1", note="first"))
    made = Deployment.objects.get(name="qwen")
    assert made.plan["layout"] == {"tensor": 1, "pipeline": 4, "replicas": 1}
    assert made.plan["flags"]["pipeline-parallel-size"] == 4
    assert made.options == {"seed": 1}
    assert (made.copies, made.executor, made.revision) == (1, "ray", 1)
    assert set(made.plan["reasons"]) == {"en", "zh-hans"}
    assert len(planning.stored_placement(made.plan)) == 4
    assert made.revisions.get().note == "first"
    assert made.cluster == four


VALUES = st.recursive(
    st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}(-[a-z]{1,8})?", fullmatch=True), VALUES, max_size=4))
def test_flags_that_are_written_into_the_form_are_read_back_as_they_were(options: dict[str, Any]) -> None:
    assert parse_flags(written_flags(options)) == options


def test_a_specification_fills_the_form_and_comes_back(four: Cluster) -> None:
    options = {"max-model-len": "4k", "max-num-seqs": 8, "tensor-parallel-size": 2, "seed": "1", "dtype": "half"}
    shown = initial(Spec("qwen", QWEN, cluster="four-a10", copies=2, options=options))
    assert shown["max_num_seqs"] == 8
    assert shown["layout"] == "hand"
    assert parse_flags(shown["extra"]) == {"max-model-len": "4k", "seed": "1", "dtype": "half"}


# --- show commands ---


def test_the_commands_are_those_of_the_rollout_with_secrets_masked(operator: Client, four: Cluster) -> None:
    page = html.unescape(planned(operator, extra="seed=1"))
    assert page.count("start --block") == 0  # one argument a line
    assert page.count("--block") == 4
    assert page.count("--head") == 1
    assert page.count("--address=127.0.0.2:") == 3
    assert "exec \"$1\" serve --config \"$QD_JOB/serve.yaml\"" in page
    assert "pipeline-parallel-size: 4" in page
    assert "seed: 1" in page
    assert "export VLLM_API_KEY=••••••" in page
    assert "$QD_JOB/ray.token" in page


def test_the_commands_of_a_deployment_hide_its_key(operator: Client, four: Cluster) -> None:
    operator.post(reverse("deployment-new"), fields())
    made = Deployment.objects.get(name="qwen")
    page = text_of(operator.get(reverse("deployment-commands", args=["qwen"])))
    assert "serve.yaml" in page
    assert made.api_key.reveal() not in page
    assert str(made.port) in page


def test_what_is_shown_is_what_the_rollout_runs(four: Cluster) -> None:
    spec = Spec("qwen", QWEN, cluster="four-a10", options={"seed": 1})
    made = revisions.create(spec, None)
    planned = planning.plan_for(spec)
    (replica,) = placing.place(made)
    (draft,) = command_page.would_be(planning.draft_of(spec, planned))
    draft.deployment.api_key = made.api_key
    draft.port = replica.port
    assert serving.command_of(draft) == serving.command_of(replica)


def test_an_argument_of_a_script_is_one_line_and_can_be_pasted() -> None:
    command = script('echo "$1"', "a b", env={"KEY": Secret("s3cret"), "A": "x y"})
    assert command_page.script_of(command) == (
        "export KEY=••••••\nexport A='x y'\nsh -euc 'echo \"$1\"' sh \\\n    'a b'"
    )


def test_the_measured_network_is_planned_with(operator: Client, four: Cluster) -> None:
    assert "The network between the hosts was not measured; 10 Gbit/s are assumed." in planned(operator)
    nodes = list(Node.objects.all())
    for source, target in itertools.permutations(nodes, 2):
        Link.objects.create(source=source, target=target, gbps=93.5)
    page = planned(operator)
    assert "was not measured" not in page
    assert "joined by 93.5 Gbit/s" in page


# --- before a start ---


def test_a_start_plans_once_more_with_what_is_free_now(four: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    made = revisions.create(Spec("qwen", QWEN, cluster="four-a10"), None)
    te4 = Node.objects.get(name="te4")
    te4.facts_json["gpus"][0]["memory_used_mib"] = 20_000
    te4.save()
    planning.renew(made)
    assert {place["host"] for place in made.fresh().plan["placement"]} == {"te1", "te2", "te3"}

    Node.objects.update(facts_json=te4.facts_json)
    with pytest.raises(Problem, match="once other processes have freed"):
        planning.renew(made)

    def away(model: str, node: Node) -> model_files.ModelFiles:
        raise Problem("te1 cannot be reached.")

    monkeypatch.setattr(planning, "model_files", away)
    planning.renew(made)  # nothing can be said, so what was planned stays
    assert len(made.fresh().plan["placement"]) == 3


def test_processes_without_ray_stay_on_one_host(four: Cluster) -> None:
    found = planning.plan_for(Spec("qwen", QWEN, cluster="four-a10", executor="mp"))
    assert "No single host holds a copy" in str(found.impossible)
    small = planning.plan_for(
        Spec("a", str(HERE / "qwen2.5-7b"), cluster="four-a10", copies=1, executor="mp",
             options={"pipeline-parallel-size": 2}))  # fmt: skip
    assert small.impossible is not None
    add_node("big", gpus=4)
    Node.objects.filter(name="big").update(cluster=four)
    found = planning.plan_for(Spec("qwen", QWEN, cluster="four-a10", executor="mp", copies=1))
    assert found.plan is not None
    assert {place.host for place in found.plan.placement} == {"big"}
