"""How vLLM is started: what was typed reaches it as it is, and never as a part of a command."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.problems import Problem
from controlplane.secrets import Secret
from deployments import commands
from nodes.facts import Facts, Gpu
from nodes.recipes import Site, ray
from nodes.remote import job
from nodes.remote.command import Command

CPU = Facts(home="/home/u")
CUDA = Facts(home="/home/u", gpus=(Gpu(0, "NVIDIA A10"),))
PLAN = ray.port_plan(20600)


def serve(root: str = "/srv/qd", facts: Facts = CPU, model: str = "/data/m", **options: Any) -> Command:
    return commands.serve(
        site=Site(root), facts=facts, plan=PLAN, address="10.0.0.11", name="demo", model=model, port=20940,
        api_key=Secret("the-key"), options=options,
    )  # fmt: skip


def config(command: Command) -> Any:
    return yaml.safe_load(command.files["serve.yaml"])


def test_the_deployment_becomes_a_configuration_file() -> None:
    assert config(serve(facts=CUDA, tensor_parallel_size=4)) == {
        "model": "/data/m",
        "served-model-name": ["demo"],
        "host": "10.0.0.11",
        "port": 20940,
        "distributed-executor-backend": "ray",
        "tensor-parallel-size": 4,
    }


def test_vllm_finds_the_ray_that_quarterdeck_started_and_no_other() -> None:
    env = serve().env
    assert env["RAY_ADDRESS"] == "10.0.0.11:20600"
    assert env["RAY_AUTH_TOKEN_PATH"] == "/srv/qd/ray/token"
    assert env["VLLM_HOST_IP"] == "10.0.0.11"


def test_the_key_is_in_no_argument_and_in_nothing_that_people_see() -> None:
    command = serve()
    assert command.env["VLLM_API_KEY"] == "the-key"
    assert "the-key" not in command.masked()
    assert not any("the-key" in word for word in command.argv)
    assert b"the-key" not in command.files["serve.yaml"]


def test_a_node_without_a_gpu_gets_defaults_that_fit_it() -> None:
    written = config(serve())
    assert written["enforce-eager"] is True
    assert written["kv-cache-memory-bytes"] == 512 * 2**20
    assert serve().env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_a_node_with_gpus_does_not() -> None:
    command = serve(facts=CUDA)
    assert not {"enforce-eager", "kv-cache-memory-bytes", "max-num-seqs"} & set(config(command))
    assert "VLLM_CPU_OMP_THREADS_BIND" not in command.env


def test_what_was_asked_for_goes_before_the_defaults() -> None:
    written = config(serve(max_num_seqs=2, enforce_eager=False))
    assert written["max-num-seqs"] == 2
    assert written["enforce-eager"] is False


def test_a_share_of_the_memory_takes_the_place_of_a_fixed_kv_cache() -> None:
    assert "kv-cache-memory-bytes" not in config(serve(gpu_memory_utilization=0.3))


def test_pipeline_stages_on_cpus_are_warmed_up() -> None:
    written = config(serve(pipeline_parallel_size=2))
    assert "enforce-eager" not in written  # it would start and die at the first prompt
    assert written["compilation-config"] == {"mode": 2, "backend": "eager"}


@pytest.mark.parametrize("typed", ["max_model_len", "--max-model-len", " max-model-len ", "Max-Model-Len"])
def test_an_options_name_may_be_written_in_each_of_vllms_ways(typed: str) -> None:
    assert commands.checked({typed: 2048}) == {"max-model-len": 2048}


NO_NAMES = ["", "--", "a b", "x;reboot", "../x", "größe", "a=b", "-q", "a\0", "hf.x", "a--b"]


@pytest.mark.parametrize("typed", NO_NAMES)
def test_what_is_no_name_of_an_option_is_refused(typed: str) -> None:
    with pytest.raises(Problem, match="is not the name of a vLLM option"):
        commands.checked({typed: 1})


@pytest.mark.parametrize("name", sorted(commands.OWN_OPTIONS))
def test_what_quarterdeck_sets_cannot_be_set_beside_it(name: str) -> None:
    with pytest.raises(Problem, match="is set by Quarterdeck"):
        commands.checked({name.replace("-", "_"): "x"})


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(Problem, match="seed is given twice"):
        commands.checked({"seed": 1, "--seed": 2})


NO_VALUES = ["--trust-remote-code", "-q", ["a", "--x"], None, [None], b"x", "x" * 30_000]


@pytest.mark.parametrize("value", NO_VALUES)
def test_a_value_that_vllm_would_take_for_something_else_is_refused(value: object) -> None:
    with pytest.raises(Problem, match="The value of middleware cannot be passed"):
        commands.checked({"middleware": value})


@pytest.mark.parametrize("value", ["-1", -1, "4K", 0.9, True, ["a", 1], {"mode": 2}, "", "auto", "a -b"])
def test_a_value_of_vllms_kinds_is_passed_on(value: object) -> None:
    assert commands.checked({"max-model-len": value}) == {"max-model-len": value}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans())
OBJECTS = st.dictionaries(TEXT, st.one_of(TEXT, NUMBERS), max_size=3)
VALUES = st.one_of(TEXT, NUMBERS, st.lists(TEXT, max_size=3), OBJECTS)


@given(model=TEXT, value=VALUES)
def test_vllm_reads_from_the_file_exactly_what_was_typed(model: str, value: Any) -> None:
    try:
        command = serve(model=model, facts=CUDA, hf_overrides=value)
    except Problem:
        return  # refused, which has its own tests
    assert config(command)["model"] == model
    assert config(command)["hf-overrides"] == value
    assert command.files["serve.yaml"].isascii()  # vLLM opens it in the node's own encoding
    assert command.argv == serve().argv


FAKE_VLLM = '#!/bin/sh\ncat "$3" > "$QD_JOB/read"; printf %s "$VLLM_API_KEY" > "$QD_JOB/key"; echo "$1 $2"\n'


@settings(max_examples=15, deadline=None)
@given(key=TEXT.filter(lambda text: "\0" not in text), model=TEXT)
def test_through_a_real_shell_nothing_is_lost_and_nothing_is_run(key: str, model: str) -> None:
    with tempfile.TemporaryDirectory(prefix="a b'$(c)") as folder:
        place = Path(folder)
        program = place / "env/bin/vllm"
        program.parent.mkdir(parents=True)
        program.write_text(FAKE_VLLM)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        command = commands.serve(
            site=Site(folder), facts=CUDA, plan=PLAN, address="::1", name="demo", model=model, port=1,
            api_key=Secret(key), options={},
        )  # fmt: skip
        (place / "serve.yaml").write_bytes(command.files["serve.yaml"])
        (place / "run").write_bytes(job.run_script(command))
        env = {**os.environ, "QD_JOB": folder}
        said = subprocess.run(["sh", "run"], cwd=folder, env=env, capture_output=True, check=True)
        assert said.stdout == b"serve --config\n"
        assert (place / "key").read_bytes() == key.encode()
        assert yaml.safe_load((place / "read").read_bytes())["model"] == model
