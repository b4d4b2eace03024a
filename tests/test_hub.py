"""Models from a hub: what a name means, what is fetched, how a download goes on, and what bad input gets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from controlplane.problems import Problem
from controlplane.secrets import NO_SECRET, Secret
from deployments.hub.client import config, file_url, listing
from deployments.hub.models import HubAccess, access, default_endpoint
from deployments.hub.place import Access
from deployments.hub.source import Hub, HubModel, ModelFile, wanted
from deployments.hub.views import presence
from nodes.models import Node
from nodes.recipes import Site, models
from nodes.remote import job
from nodes.remote.command import Command
from nodes.remote.local import LocalHost
from tests.support.stand_in_hub import COMMIT, MODEL, StandInHub, serving

NEEDED = {"config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
TINY = HubModel(Hub.HUGGING_FACE, MODEL)
SITE = Site("/nowhere")


@pytest.fixture
def hub() -> StandInHub:
    return StandInHub()


@pytest.fixture
def address(hub: StandInHub) -> Iterator[str]:
    with serving(hub) as address:
        yield address


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "directory"), [
    ("hf:Qwen/Qwen2.5-0.5B-Instruct", "hf--Qwen--Qwen2.5-0.5B-Instruct"),
    ("ms:qwen/Qwen2.5-0.5B@v1.0", "ms--qwen--Qwen2.5-0.5B@v1.0"),
    ("hf:gpt2@refs/pr/1", "hf--gpt2@refs--pr--1"),
])
def test_a_name_says_hub_id_and_revision(model: str, directory: str) -> None:
    parsed = HubModel.parse(model)
    assert parsed is not None
    assert (str(parsed), parsed.directory) == (model, directory)


@pytest.mark.parametrize("model", ["/data/models/x", "demo", "", "C:/models", "hf"])
def test_a_path_is_no_hubs(model: str) -> None:
    assert HubModel.parse(model) is None


@pytest.mark.parametrize(
    "name", ["", "../etc", "a/../b", "a/b/c", "-x/y", "a b", "a/b;rm", "a/b\n", "模型/x", "a/" + "b" * 97])
def test_an_impossible_id_is_refused(name: str) -> None:
    with pytest.raises(Problem, match="not the id of a model"):
        HubModel.parse(f"hf:{name}")


@pytest.mark.parametrize("revision", ["..", "a..b", "-x", "a b", "x" * 101])
def test_an_impossible_revision_is_refused(revision: str) -> None:
    with pytest.raises(Problem, match="not a revision"):
        HubModel.parse(f"hf:a/b@{revision}")


# --- listings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Hub)
def test_a_listing_names_what_serving_needs(hub: StandInHub, address: str, kind: Hub) -> None:
    found = listing(Access(address), HubModel(kind, MODEL))
    assert {file.path for file in found.files} == NEEDED
    assert found.commit == COMMIT
    assert found.size == sum(len(hub.files[name]) for name in NEEDED)
    assert found.tensor_bytes == sum(len(hub.files[name]) for name in NEEDED if "safetensors" in name)
    assert config(Access(address), HubModel(kind, MODEL), found.commit) == {"architectures": ["LlamaForCausalLM"]}


def test_weights_that_are_there_twice_are_fetched_once() -> None:
    names = ["model.safetensors", "consolidated.safetensors", "pytorch_model.bin", "original/x.pth", "config.json"]
    kept = wanted([ModelFile(name, 1) for name in names])
    assert [file.path for file in kept] == ["config.json", "model.safetensors"]
    assert [file.path for file in wanted([ModelFile("pytorch_model.bin", 1)])] == ["pytorch_model.bin"]


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "a\0b", "a\nb", "a\\..\\b", "x" * 401])
def test_a_listing_cannot_lead_out_of_the_directory(path: str) -> None:
    with pytest.raises(Problem, match="outside the model's directory"):
        wanted([ModelFile(path, 1)])


@pytest.mark.parametrize(("status", "said"), [
    (404, "has no model"), (401, "private or gated"), (403, "private or gated"), (503, "status 503")])
def test_a_hub_that_refuses_is_understood(status: int, said: str) -> None:
    with pytest.raises(Problem, match=said):
        listing(Access("http://hub"), TINY, httpx.MockTransport(lambda request: httpx.Response(status)))


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"{}", b'{"siblings": 3, "sha": 1}', b'{"sha": 1, "siblings": [3]}', b"[" * 9000])
@pytest.mark.parametrize("kind", Hub)
def test_nonsense_is_not_taken_for_a_listing(body: bytes, kind: Hub) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    with pytest.raises(Problem, match=r"is not .*'s API"):
        listing(Access("http://hub"), HubModel(kind, MODEL), transport)


def test_an_answer_without_end_is_not_kept() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=b" " * (17 << 20)))
    with pytest.raises(Problem, match="more than 16 MiB"):
        listing(Access("http://hub"), TINY, transport)


def test_nobody_answers() -> None:
    with pytest.raises(Problem, match=r"Hugging Face cannot be reached at http://127\.0\.0\.1:9"):
        listing(Access("http://127.0.0.1:9"), TINY)


# --- on a node --------------------------------------------------------------------------------------------------


def run(tmp_path: Path, command: Command, name: str = "job") -> tuple[int, str]:
    """As a job runs it: its files in its directory, its script; exit status and output."""
    place = tmp_path / "jobs" / name
    place.mkdir(parents=True, exist_ok=True)
    for file, content in {"run": job.run_script(command), **command.files}.items():
        (place / file).write_bytes(content)
    done = subprocess.run(["sh", str(place / "run")], capture_output=True, text=True, timeout=60,
                          env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "QD_JOB": str(place)})
    return done.returncode, done.stdout + done.stderr


def fetch(tmp_path: Path, address: str, token: Secret = NO_SECRET, hasty: bool = False) -> tuple[int, str]:
    access = Access(address, token)
    found = listing(access, TINY)
    files = [{**file._asdict(), "url": file_url(access, TINY, found.commit, file.path)} for file in found.files]
    manifest = {"model": MODEL, "commit": found.commit, "files": files}
    command = models.fetched(SITE, str(tmp_path / "models" / "tiny"), manifest, token)
    if hasty:  # gives up after the second try, and does not wait before it
        program = command.files["model_fetch.py"]
        hastier = program.replace(b"TRIES = 8", b"TRIES = 2").replace(b"min(30, 2**attempt)", b"0")
        command = command.with_files({"model_fetch.py": hastier})
    return run(tmp_path, command)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_model_is_downloaded(tmp_path: Path, hub: StandInHub, address: str) -> None:
    status, output = fetch(tmp_path, address)
    assert status == 0, output
    assert content(tmp_path / "models" / "tiny") == {name: hub.files[name] for name in NEEDED}
    printed = LocalHost().run(models.listed(Site(str(tmp_path)), str(tmp_path / "models" / "tiny"))).text
    digests = {name: digest for name, _size, digest in models.listing(printed)}
    assert digests == {name: hub.digest(name) for name in NEEDED}


def test_a_download_goes_on_from_where_it_was_cut(tmp_path: Path, hub: StandInHub, address: str) -> None:
    hub.cut_after, hub.cuts = 300_000, 3
    status, output = fetch(tmp_path, address)
    assert status == 0, output
    assert content(tmp_path / "models" / "tiny") == {name: hub.files[name] for name in NEEDED}
    ranges = [asked for _path, asked, _token in hub.asked if asked]
    assert len(ranges) == 3
    assert all(int(asked[6:-1]) >= 300_000 for asked in ranges)


def test_a_download_that_was_killed_goes_on(tmp_path: Path, hub: StandInHub, address: str) -> None:
    partial = tmp_path / "models" / "tiny.partial"
    partial.mkdir(parents=True)
    name = "model-00001-of-00002.safetensors"
    (partial / f"{name}.part").write_bytes(hub.files[name][:1000])
    assert fetch(tmp_path, address)[0] == 0
    assert "bytes=1000-" in {asked for _path, asked, _token in hub.asked}
    assert (tmp_path / "models" / "tiny" / name).read_bytes() == hub.files[name]


def test_what_is_not_what_the_hub_lists_never_becomes_a_model(
    tmp_path: Path, hub: StandInHub, address: str
) -> None:
    hub.wrong_checksum = True
    status, output = fetch(tmp_path, address, hasty=True)
    assert status == 1
    assert "could not be downloaded" in output
    assert not (tmp_path / "models" / "tiny").exists()


def test_the_token_is_shown_to_the_hub_and_not_to_its_storage(tmp_path: Path, hub: StandInHub, address: str) -> None:
    storage = StandInHub()
    hub.token = "hf_secret"
    with serving(storage) as elsewhere:
        hub.storage = elsewhere
        status, output = fetch(tmp_path, address, Secret("hf_secret"))
    assert status == 0, output
    assert {token for _path, _range, token in hub.asked} == {"Bearer hf_secret"}
    assert {token for _path, _range, token in storage.asked} == {""}
    assert "hf_secret" not in output
    with pytest.raises(Problem, match="private or gated"):
        listing(Access(address), TINY)


def test_a_disk_that_is_too_small_is_said_before_anything_comes(tmp_path: Path) -> None:
    file = {"path": "model.safetensors", "size": 1 << 60, "sha256": "", "url": "http://127.0.0.1:9/x"}
    manifest = {"model": "huge", "commit": "x", "files": [file]}
    status, output = run(tmp_path, models.fetched(SITE, str(tmp_path / "models" / "huge"), manifest, NO_SECRET))
    assert status == 1
    assert "GiB free and the model needs 1073741824.0 GiB more" in output


# --- the same on every node ---------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, hub: StandInHub) -> Path:
    """A model directory with a place for blanks and quotes, read once."""
    directory = tmp_path / "it's a model"
    (directory / "sub").mkdir(parents=True)
    (directory / "config.json").write_bytes(b"{}")
    (directory / "sub" / "weights.safetensors").write_bytes(hub.files["model-00001-of-00002.safetensors"])
    status, output = run(tmp_path, models.summed(str(directory)), "sums")
    assert status == 0, output
    return directory


#: In place of ssh: the other node's root is a directory beside this one's.
ELSEWHERE = ["sh", "-c", 'eval "$(printf %s "$1" | sed "s|/here/|/there/|")"', "sh"]


def test_a_model_is_copied_and_what_is_there_stays(tmp_path: Path, hub: StandInHub) -> None:
    there, here = tmp_path / "there" / "m", tmp_path / "here" / "m"
    for directory in (there, here):
        directory.mkdir(parents=True)
        (directory / "config.json").write_bytes(b"{}")
    weights = hub.files["model-00001-of-00002.safetensors"]
    (there / "weights.safetensors").write_bytes(weights)
    (here / "weights.safetensors.part").write_bytes(weights[:5000])
    assert run(tmp_path, models.summed(str(there)), "sums")[0] == 0
    files = models.listing(LocalHost().run(models.listed(Site(str(tmp_path)), str(there))).text)
    status, output = run(tmp_path, models.copied(str(here), files, ELSEWHERE))
    assert status == 0, output
    assert "1 of 2 files to copy" in output
    assert content(here) == content(there)
    assert models.listing(LocalHost().run(models.listed(Site(str(tmp_path)), str(here))).text) == files


def test_a_file_that_differs_is_copied_again(tmp_path: Path) -> None:
    there, here = tmp_path / "there" / "m", tmp_path / "here" / "m"
    for directory, data in ((there, b"right"), (here, b"wrong")):
        directory.mkdir(parents=True)
        (directory / "config.json").write_bytes(b"{}")
        (directory / "model.safetensors").write_bytes(data)
    run(tmp_path, models.summed(str(there)), "sums")
    files = models.listing(LocalHost().run(models.listed(Site(str(tmp_path)), str(there))).text)
    assert run(tmp_path, models.copied(str(here), files, ELSEWHERE))[0] == 0
    assert (here / "model.safetensors").read_bytes() == b"right"


def test_a_model_on_a_share_for_reading_only_is_compared_too(tmp_path: Path, model: Path) -> None:
    beside = model.with_name(model.name + ".sums.json")
    beside.unlink()
    beside.with_name(beside.name + ".part").mkdir()  # nothing can be written there, not by root either
    assert run(tmp_path, models.summed(str(model)), "again")[0] == 0
    assert not beside.exists()
    listed = models.listing(LocalHost().run(models.listed(Site(str(tmp_path)), str(model))).text)
    assert [name for name, _size, digest in listed if digest] == ["config.json", "sub/weights.safetensors"]


def test_checksums_are_computed_once(tmp_path: Path, model: Path) -> None:
    status, output = run(tmp_path, models.summed(str(model)), "again")
    assert (status, "0 to read" in output) == (0, True)
    (model / "config.json").write_bytes(b"{ }")
    assert "1 to read" in run(tmp_path, models.summed(str(model)), "changed")[1]
    listed = models.listing(LocalHost().run(models.listed(Site(str(tmp_path)), str(model))).text)
    assert [name for name, _size, digest in listed if digest] == ["config.json", "sub/weights.safetensors"]


def test_what_is_no_listing_is_not_read_as_one() -> None:
    for printed in ("", "welcome", json.dumps({"files": [[1]]})):
        with pytest.raises((ValueError, KeyError)):
            models.listing(printed or "x")


# --- the page ---------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_an_admin_sets_a_mirror_and_a_token_that_is_never_shown(admin_client: Client) -> None:
    page = {"hf-endpoint": "https://mirror.example.org/", "hf-token": "hf_secret"}
    assert admin_client.post(reverse("model-hub", args=["hf"]), page).status_code == 302
    assert access(Hub.HUGGING_FACE) == Access("https://mirror.example.org", Secret("hf_secret"))
    text = admin_client.get(reverse("models")).content.decode()
    assert "https://mirror.example.org" in text
    assert "hf_secret" not in text
    admin_client.post(reverse("model-hub", args=["hf"]), {"hf-endpoint": ""})
    assert access(Hub.HUGGING_FACE) == Access(default_endpoint(Hub.HUGGING_FACE), Secret("hf_secret"))
    admin_client.post(reverse("model-hub", args=["hf"]), {"hf-endpoint": "", "hf-forget": "on"})
    assert access(Hub.HUGGING_FACE).token == ""


@pytest.mark.django_db
@pytest.mark.parametrize(
    "endpoint", ["mirror", "ftp://x", "https://", "https://me:pw@x", "https://x?y", "javascript:alert(1)"])
def test_an_address_that_is_none_is_refused(admin_client: Client, endpoint: str) -> None:
    answer = admin_client.post(reverse("model-hub", args=["hf"]), {"hf-endpoint": endpoint})
    assert answer.status_code == 409
    assert "Type an address such as" in answer.content.decode()
    assert not HubAccess.objects.exists()


@pytest.mark.django_db
def test_the_page_says_which_node_has_which_model(admin_client: Client) -> None:
    for name, models_there in (("te1", ["a", "b"]), ("te2", ["b"])):
        Node.objects.create(
            name=name, address=name, user="u", facts_at=timezone.now(), facts_json={"models": models_there})
    found = presence(Node.objects.all())
    assert [(name, [node.name for node in nodes]) for name, nodes in found] == [("a", ["te1"]), ("b", ["te1", "te2"])]
    assert admin_client.get(reverse("models")).status_code == 200
