"""``manage.py plan``: the shape of its answer, and its exit status."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from deployments.plan.files import tensor_bytes
from tests.plans import HERE

MODEL = HERE / "qwen2.5-14b"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def four_a10(tmp_path: Path) -> Path:
    gpu = {
        "name": "NVIDIA A10",
        "memory_total_mib": 23028,
        "memory_used_mib": 0,
        "compute_capability": "8.6",
    }
    hosts = [{"name": f"te{i}", "gpus": [gpu]} for i in range(1, 5)]
    return write(tmp_path / "hosts.json", {"hosts": hosts, "network_gbps": 10})


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def answer(*words: str | Path) -> dict[str, Any]:
    out = StringIO()
    call_command("plan", *map(str, words), "--json", stdout=out)
    shape = json.loads(out.getvalue())
    assert isinstance(shape, dict)
    return shape


def test_the_answer_has_the_promised_shape(four_a10: Path) -> None:
    shape = answer(MODEL, "--hosts", four_a10)

    assert list(shape) == [
        "feasible",
        "layout",
        "placement",
        "kv_tokens",
        "max_concurrency",
        "flags",
        "reasons",
        "alternatives",
        "problems",
    ]
    assert shape["feasible"] is True
    assert shape["layout"] == {"tensor": 1, "pipeline": 4, "replicas": 1}
    assert [place["host"] for place in shape["placement"]] == ["te1", "te2", "te3", "te4"]
    assert set(shape["placement"][0]) == {"host", "gpu", "rank", "weights_bytes", "kv_bytes"}
    assert shape["max_concurrency"] == round(shape["kv_tokens"] / shape["flags"]["max-model-len"], 2)
    assert shape["flags"]["pipeline-parallel-size"] == 4
    assert {tuple(other) for other in shape["alternatives"]} == {("layout", "why_not")}


def test_wishes_are_given_in_vllms_own_flag_names(four_a10: Path) -> None:
    shape = answer(MODEL, "--hosts", four_a10, "--set", "max-model-len=4096", "--set", "tensor-parallel-size=4")

    assert shape["layout"] == {"tensor": 4, "pipeline": 1, "replicas": 1}
    assert shape["flags"]["max-model-len"] == 4096


def test_several_wishes_may_follow_one_set(four_a10: Path) -> None:
    shape = answer(MODEL, "--hosts", four_a10, "--set", "max-model-len=4096", "enforce-eager")

    assert shape["flags"]["max-model-len"] == 4096
    assert shape["flags"]["enforce-eager"] is True


def test_an_impossible_wish_is_an_answer_not_an_error(four_a10: Path) -> None:
    shape = answer(MODEL, "--hosts", four_a10, "--set", "tensor-parallel-size=3")

    assert shape["feasible"] is False
    assert shape["layout"] is None
    assert shape["problems"] == ["40 attention heads cannot be divided by 3."]
    assert shape["nearest"]["layout"]["tensor"] in (2, 4)


def test_people_read_the_same_plan_as_text(four_a10: Path) -> None:
    out = StringIO()
    call_command("plan", str(MODEL), "--hosts", str(four_a10), stdout=out)

    text = out.getvalue()
    assert text.startswith("TP=1, PP=4\n")
    assert "--pipeline-parallel-size 4" in text
    assert "TP=3, PP=1: 40 attention heads cannot be divided by 3." in text


@pytest.mark.parametrize(
    ("hosts", "sentence"),
    [
        ("{", "hosts.json is not valid JSON"),
        ([], "hosts.json needs a list named hosts with at least one host."),
        ({"hosts": []}, "hosts.json needs a list named hosts with at least one host."),
        ({"hosts": [{"gpus": []}]}, "A host in the hosts file has no name."),
        ({"hosts": [{"name": "a"}, {"name": "a"}]}, "hosts.json names a host twice."),
        ({"hosts": [{"name": "a", "gpus": 4}]}, "a: gpus must be a list."),
        (
            {"hosts": [{"name": "a", "gpus": [{"name": "A10"}]}]},
            "memory_total_mib must be a number, not None.",
        ),
        (
            {"hosts": [{"name": "a"}], "network_gbps": -1},
            "network_gbps must be a number above 0, not -1.",
        ),
    ],
)
def test_a_hosts_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, hosts: Any, sentence: str) -> None:
    path = write(tmp_path / "hosts.json", hosts)

    with pytest.raises(CommandError) as error:
        answer(MODEL, "--hosts", path)

    assert sentence in str(error.value)
    assert error.value.returncode == 2


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "config.json cannot be read: No such file or directory."),
        ("[]", "config.json holds no JSON object."),
        ({"model_type": "qwen2"}, "config.json says hidden_size is None"),
        ("[" * 100_000, "config.json is not valid JSON"),
        (
            {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 10**9},
            "num_hidden_layers is 1000000000; a whole number from 1 to 10000 is needed.",
        ),
        ({"kv_lora_rank": 512, "hidden_size": 1, "num_attention_heads": 1, "num_hidden_layers": 1}, "qk_rope"),
    ],
)
def test_a_model_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, four_a10: Path, config: Any, sentence: str
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    if config is not None:
        write(directory / "config.json", config)

    with pytest.raises(CommandError) as error:
        answer(directory, "--hosts", four_a10)

    assert sentence in str(error.value)
    assert error.value.returncode == 2


def test_the_exit_status_is_0_for_any_plan_and_2_for_bad_input(four_a10: Path) -> None:
    def status(*words: str) -> tuple[int, str]:
        command = [sys.executable, "manage.py", "plan", str(MODEL), "--hosts", str(four_a10), *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr

    assert status("--json", "--set", "tensor-parallel-size=3") == (0, "")
    assert status("--set", "max-model-len=soon") == (
        2,
        "CommandError: max-model-len must be a whole number above 0, not soon.\n",
    )


def test_the_size_of_a_checkpoint_comes_from_its_index_or_its_headers(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {},
            "a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
            "b": {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]},
        }
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    assert tensor_bytes(tmp_path) == 12

    write(tmp_path / "model.safetensors.index.json", {"metadata": {"total_size": 99}})
    assert tensor_bytes(tmp_path) == 99


def test_a_file_that_only_pretends_to_hold_tensors_is_bad_input(tmp_path: Path, four_a10: Path) -> None:
    (tmp_path / "config.json").write_text((MODEL / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)

    with pytest.raises(CommandError, match="is not a safetensors file"):
        answer(tmp_path, "--hosts", four_a10)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", [8]), ("num_key_value_heads", -1), ("head_dim", float("nan")), ("head_dim", 1e308),
        ("intermediate_size", float("inf")), ("intermediate_size", float("nan")), ("num_local_experts", float("inf")),
        ("num_experts_per_tok", True), ("max_position_embeddings", 10**30), ("intermediate_size", 10**30),
    ],
)  # fmt: skip
def test_a_config_with_impossible_numbers_is_one_sentence(four_a10: Path, tmp_path: Path, key: str, value: Any) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    write(tmp_path / "config.json", {**config, key: value})
    with pytest.raises(CommandError) as refused:
        answer(tmp_path, "--hosts", four_a10)
    assert refused.value.returncode == 2
    assert "config.json" in str(refused.value)
    assert "\n" not in str(refused.value)
