"""What Ray says of a cluster is read right, and each difference is a problem with a name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from controlplane.problems import Problem
from nodes.clusters import view as clusters_view
from nodes.clusters.view import Member, RayNode, View
from nodes.facts import Environment, Facts, Gpu, Process


def facts(gpus: int = 0, used: int = 0, python: str = "3.11.7", **packages: str) -> Facts:
    cards = tuple(Gpu(n, "A10", f"GPU-{n}", memory_total_mib=23028, memory_used_mib=used) for n in range(gpus))
    return Facts(cpus=8, gpus=cards, environment=Environment("/env", python, packages or {"ray": "2.60.0"}))


def member(number: int, gpus: int = 1, **more: Any) -> Member:
    return Member(f"te{number}", f"10.0.0.1{number}", facts(gpus), **more)


def ray_node(number: int, gpus: float = 1.0, used: float = 0.0, alive: bool = True, **total: float) -> RayNode:
    offers = {"CPU": 8.0, "GPU": gpus, **total}
    return RayNode(f"10.0.0.1{number}", number == 1, alive, "" if alive else "no heartbeats", offers, {"GPU": used})


def test_a_view_is_read_as_it_was_printed() -> None:
    printed = {"t": 5.0, "ray": "2.60.0", "python": "3.11.7", "waiting": 1, "nodes": [
        {"ip": "10.0.0.11", "head": True, "alive": True, "why": "", "total": {"GPU": 1.0}, "used": {"GPU": 0.5}}]}
    view = View.from_json(json.dumps(printed))
    assert (view.ray, view.waiting, view.gpus()) == ("2.60.0", 1, (0.5, 1.0))
    assert view.at("10.0.0.11") == view.nodes[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"t": 1, "ray": "", "python": "", "waiting": 0, "nodes": [{}]}'])
def test_what_is_no_view_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        View.from_json(text)


def test_resources_are_summed_over_the_living_gpus_first() -> None:
    view = View(nodes=(ray_node(1, used=1.0), ray_node(2, memory=4.0), ray_node(3, alive=False)))
    assert view.resources() == [("GPU", 1.0, 2.0), ("CPU", 0.0, 16.0), ("memory", 0.0, 4.0)]


def test_what_ray_counts_again_for_a_placement_group_is_left_out() -> None:
    group = "e4485b715545f900ddfcdae41ffa01000000"
    again = {f"GPU_group_0_{group}": 1.0, f"GPU_group_{group}": 1.0, f"bundle_group_{group}": 1000.0}
    node = ray_node(1)
    view = View(nodes=(replace(node, total={**node.total, **again, "my_group": 2.0}),))
    assert {name for name, *_amounts in view.resources()} == {*node.total, "my_group"}


def test_who_is_not_in_ray_is_named_with_rays_own_reason() -> None:
    view = View(nodes=(ray_node(1), ray_node(2, alive=False)))
    assert clusters_view.absent(view, [member(1), member(2), member(3)]) == {
        "te2": "no heartbeats", "te3": "Ray does not know it"}


def test_a_gpu_that_fell_off_the_bus_after_ray_started_is_a_named_problem() -> None:
    view = View(nodes=(ray_node(1, gpus=2.0), ray_node(2)))
    (problem,) = clusters_view.differences(view, [member(1, gpus=1), member(2, gpus=1)])
    assert problem.what == "Ray counts 2 GPUs on te1, nvidia-smi 1."


def test_the_gpu_that_ray_is_told_of_where_there_is_none_is_no_difference() -> None:
    assert clusters_view.differences(View(nodes=(ray_node(1),)), [member(1, gpus=0)]) == []


def test_a_resource_of_ones_own_that_ray_does_not_have_is_a_difference() -> None:
    (problem,) = clusters_view.differences(View(nodes=(ray_node(1),)), [member(1, resources={"fast-disk": 2})])
    assert problem.what == "Ray counts 0 of the resource fast-disk on te1 instead of 2."


def versions(**python: str) -> list[Member]:
    return [Member(name, "", facts(python=version)) for name, version in python.items()]


def test_another_python_on_one_node_is_named() -> None:
    assert clusters_view.unlike(versions(te1="3.11.7", te2="3.11.7")) == []
    (problem,) = clusters_view.unlike(versions(te1="3.11.7", te2="3.11.9"))
    assert problem.what == "Python is not the same on all nodes: te1 3.11.7, te2 3.11.9."


def test_vllm_built_for_cpus_and_for_gpus_is_the_same_vllm() -> None:
    one, other = facts(vllm="0.32.0"), facts(vllm="0.32.0+cpu")
    assert clusters_view.unlike([Member("te1", "", one), Member("te2", "", other)]) == []


@pytest.mark.parametrize(("options", "size"), [
    ({}, 1), ({"tensor-parallel-size": 2, "pipeline-parallel-size": "4"}, 8), ({"tensor-parallel-size": "many"}, 0)])
def test_the_world_is_as_big_as_vllms_own_options_say(options: Mapping[str, Any], size: int) -> None:
    assert clusters_view.world_size(options) == size


@pytest.mark.parametrize(("wanted", "gpus", "says"), [
    (3, 1, "wants 3 GPUs, and Ray has 2 in this cluster"),
    (2, 1, "wants 2 GPUs, and only 1 of the 2 in this cluster are free"),
    (3, 0, "wants 3 workers, and this cluster without GPUs has room for 2"),
    (2, 0, "wants 2 workers, and of 2 places in this cluster 1 are free")])
def test_what_ray_could_not_place_is_refused(wanted: int, gpus: int, says: str) -> None:
    view = View(nodes=(ray_node(1, used=1.0), ray_node(2)))
    with pytest.raises(Problem) as caught:
        clusters_view.check_room(view, [member(1, gpus=gpus), member(2, gpus=gpus)], wanted)
    assert says in caught.value.what
    clusters_view.check_room(view, [member(1, gpus=gpus), member(2, gpus=gpus)], 1)


def test_memory_that_somebody_holds_is_named_with_who_does() -> None:
    held = facts(1, used=9000)
    holder = Process(7, "anna", "python train.py", gpu_uuid="GPU-0", used_mib=8900)
    nodes = {"te1": facts(1), "te2": Facts(gpus=held.gpus, gpu_processes=(holder,))}
    clusters_view.check_memory(nodes, 0.9, 1)
    with pytest.raises(Problem) as caught:
        clusters_view.check_memory(nodes, 0.9, 2)
    assert caught.value.what.startswith("1 of the 2 GPUs that are wanted have 90 % of their memory free.")
    assert "te2 GPU 0: 14028 MiB free, python train.py (anna, 8900 MiB)" in caught.value.what


@pytest.mark.parametrize(("line", "said"), [
    ("ERR scripts.py:90 -- raylet [exit code=-9]", "raylet was killed by signal 9"),
    ("ERR scripts.py:90 -- gcs_server [exit code=1]", "gcs_server ended with status 1"), ("nothing of the sort", "")])
def test_what_ray_died_of_is_read_from_its_log(line: str, said: str) -> None:
    assert clusters_view.died_of(f"Some Ray subprocesses exited unexpectedly:\n  {line}\n{line}\n") == said
