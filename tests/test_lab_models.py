"""A model from a hub reaches every node of a cluster: downloaded by one, copied to the others, and again after changes.

Hosts of the lab with real sshd, a stand-in hub on this machine; no engine: only the steps that bring the model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.lab import Host, Lab, until
from tests.lab.deck import LabDeck
from tests.support.stand_in_hub import StandInHub, serving

pytestmark = [pytest.mark.lab, pytest.mark.sshd, pytest.mark.valkey]

_CLUSTER = """
from nodes.models import Cluster, Node
members = list(Node.objects.filter(name__in=names).order_by("name"))
cluster = Cluster.objects.create(name="models", head=members[0])
Node.objects.filter(name__in=names).update(cluster=cluster)
from deployments.rollout import stories as rollout
answer = rollout.create("tiny", model, cluster, None, {}, None).pk
"""
_BRING = """
from deployments.rollout import model_steps
from deployments.rollout import stories as rollout
from deployments.models import Deployment
from nodes import runs
from nodes.clusters.address import members
deployment = Deployment.objects.select_related("cluster__head").get(pk=pk)
nodes = members(deployment.cluster)
stages = [[("facts", node) for node in nodes], *model_steps.stages(deployment, nodes)]
answer = runs.start("rollout", deployment.subject, stages, None).pk
"""
_LOG = "from nodes import logs; from nodes.models import Job; answer = logs.tail(Job.objects.get(pk=pk))"
_MODEL = "from deployments.models import Deployment; Deployment.objects.filter(pk=pk).update(model=model); answer = 0"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(3) as lab:
        if not lab.real:
            pytest.skip("hosts with homes of their own need root")
        yield lab


@pytest.fixture(scope="module")
def hub(lab: Lab) -> Iterator[tuple[StandInHub, str]]:
    found = StandInHub()
    found.files["model-00001-of-00002.safetensors"] = os.urandom(24 << 20)
    assert lab.record is not None
    with serving(found, f"{lab.record.network}.1") as address:
        yield found, address


@pytest.fixture(scope="module")
def deck(tmp_path_factory: pytest.TempPathFactory, lab: Lab, hub: tuple[StandInHub, str]) -> Iterator[LabDeck]:
    deck = LabDeck(tmp_path_factory.mktemp("deck"), HF_ENDPOINT=hub[1])
    try:
        deck.wait_for_address()
        deck.register(*lab.hosts)
        yield deck
    finally:
        deck.stop()


@pytest.fixture(scope="module")
def deployment(deck: LabDeck) -> int:
    return int(deck.do(_CLUSTER, names=["te1", "te2", "te3"], model="hf:lab/tiny"))


def brought(deck: LabDeck, deployment: int) -> dict[tuple[str, str], str]:
    """Bring the model to the nodes: (step, node) → its state. AssertionError where it fails."""
    return outcome(deck, int(deck.do(_BRING, pk=deployment)))


def outcome(deck: LabDeck, run: int) -> dict[tuple[str, str], str]:
    """The same, of a run that was begun: each step once, and all of them well."""
    done = deck.finished(run, 120)
    assert done["state"] == "done", done
    assert len({(step["kind"], step["node"]) for step in done["steps"]}) == len(done["steps"])
    return {(step["kind"], step["node"]): step["state"] for step in done["steps"]}


def break_everything(deck: LabDeck, lab: Lab) -> None:
    """Kill worker and watch, and every SSH connection, Quarterdeck's own and those between the hosts; then be quick."""
    deck.kill("celery")
    deck.kill("manage.py", "watch")
    for host in lab.hosts:
        host.run("pkill -KILL -f '^sshd: [a-z]+@' || true")
        host.restore()


def size(host: Host, path: str) -> int:
    return int(host.run(f"stat -c %s {path} 2>/dev/null || echo 0"))


def sums(lab: Lab, place: str) -> set[str]:
    """What each host has there."""
    return {host.run(f"cd {place} && sha256sum $(find . -type f | sort)") for host in lab.hosts}


def test_a_model_is_downloaded_once_copied_and_kept_the_same(
    lab: Lab, hub: tuple[StandInHub, str], deck: LabDeck, deployment: int
) -> None:
    deck.do(_MODEL, pk=deployment, model="hf:lab/tiny")
    place = "$HOME/.quarterdeck/models/hf--lab--tiny"
    lab["te1"].slow("30mbit")
    run = int(deck.do(_BRING, pk=deployment))
    part = f"{place}.partial/model-00001-of-00002.safetensors.part"
    until(lambda: size(lab["te1"], part) > 1 << 20, 60, "te1 is downloading")
    break_everything(deck, lab)
    first = outcome(deck, run)
    deck.jobs(*lab.hosts)
    assert first["model", "te1"] == first["model-copy", "te2"] == first["model-copy", "te3"] == "done"
    assert len(sums(lab, place)) == 1
    downloads = sum("/resolve/" in path and "config.json" not in path for path, _range, _token in hub[0].asked)
    assert downloads == 3  # tokenizer and weights, by one node
    again = brought(deck, deployment)
    assert {state for (kind, _node), state in again.items() if kind != "facts"} == {"skipped"}
    lab["te3"].run(f"echo broken > {place}/model-00002-of-00002.safetensors")
    mended = brought(deck, deployment)
    assert (mended["model-copy", "te2"], mended["model-copy", "te3"]) == ("skipped", "done")
    assert len(sums(lab, place)) == 1


def test_a_directory_that_one_node_has_is_copied_to_the_others_and_goes_on_where_it_was_cut(
    lab: Lab, deck: LabDeck, deployment: int
) -> None:
    deck.do(_MODEL, pk=deployment, model="/srv/it's a model")
    place = "\"/srv/it's a model\""
    lab["te1"].run(f"mkdir -p {place} && cd {place} && echo '{{}}' > config.json &&"
                   " head -c 40M /dev/urandom > w.safetensors")
    lab["te1"].slow("60mbit")
    run = int(deck.do(_BRING, pk=deployment))
    part = f"{place}/w.safetensors.part"
    until(lambda: size(lab["te2"], part) > 1 << 20, 60, "te2 is copying")
    break_everything(deck, lab)
    outcome(deck, run)
    assert len(sums(lab, place)) == 1
    jobs = deck.jobs(*lab.hosts)
    job = next(step["job"] for step in deck.run(run)["steps"] if (step["kind"], step["node"]) == ("model-copy", "te2"))
    assert jobs[job]["state"] == "exited"
    assert "going on from" in deck.do(_LOG, pk=job)


def test_a_share_for_reading_only_is_compared_and_nothing_is_copied(
    lab: Lab, deck: LabDeck, deployment: int
) -> None:
    deck.do(_MODEL, pk=deployment, model="/srv/share/m")
    for host in lab.hosts:
        host.run("mkdir -p /srv/share && mount -t tmpfs tmpfs /srv/share && mkdir /srv/share/m && cd /srv/share/m &&"
                 " echo '{}' > config.json && echo same > w.safetensors && mount -o remount,ro /srv/share")
    first = brought(deck, deployment)
    assert first["model", "te1"] == first["model-copy", "te2"] == "done"
    again = brought(deck, deployment)
    assert again["model-copy", "te2"] == again["model-copy", "te3"] == "skipped"
    for host in lab.hosts:
        host.run("umount /srv/share")


def test_a_disk_that_is_too_small_is_told_before_anything_is_copied(lab: Lab, deck: LabDeck, deployment: int) -> None:
    deck.do(_MODEL, pk=deployment, model="/srv/large")
    lab["te1"].run("mkdir -p /srv/large && cd /srv/large && echo '{}' > config.json && truncate -s 2G w.safetensors")
    lab["te2"].fill_disk(leave=1 << 30)
    run = deck.finished(int(deck.do(_BRING, pk=deployment)), 90)
    lab["te2"].empty_disk()
    assert run["state"] == "failed"
    assert re.search(r"The model needs 2\.0 GiB more for /srv/large, and te2 has 1\.0 GiB free", run["reason"])
    copies = [step for step in run["steps"] if step["kind"] == "model-copy"]
    assert [step["job"] for step in copies if step["node"] == "te2"] == [None]


def test_a_disk_that_is_too_small_is_told_before_anything_is_downloaded(
    lab: Lab, hub: tuple[StandInHub, str], deck: LabDeck, deployment: int
) -> None:
    deck.do(_MODEL, pk=deployment, model="hf:lab/tiny")
    lab["te1"].run("rm -rf ~/.quarterdeck/models/hf--lab--tiny*")
    asked = len(hub[0].asked)
    lab["te1"].fill_disk(leave=20 << 20)
    run = deck.finished(int(deck.do(_BRING, pk=deployment)), 90)
    lab["te1"].empty_disk()
    said = "The model needs 0.0 GiB more for /root/.quarterdeck/models/hf--lab--tiny, and te1 has 0.0 GiB free there"
    assert said in run["reason"]
    assert not [path for path, _range, _token in hub[0].asked[asked:] if "/resolve/" in path]
