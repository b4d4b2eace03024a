"""Wheels for nodes without a network: the right ones, pushed over a real SFTP, from where it stopped, and checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from django.conf import settings
from pytest_django import Settings

from controlplane.problems import Problem
from nodes import hosts, preparation, registration, runs, wheelhouse
from nodes.facts import Facts
from nodes.models import Node, Run, Step
from nodes.options import Options
from nodes.recipes import Satisfied, python_env
from nodes.recipes.wheelhouse import choose, platforms
from nodes.registration import Login
from nodes.remote import ssh
from nodes.remote.command import script
from nodes.remote.errors import Unreachable
from nodes.remote.local import LocalHost
from nodes.runs import Done, Waiting
from tests.support import sshd as sshd_support
from tests.support.sshd import Sshd

UBUNTU = Facts(machine="x86_64", glibc="2.39")


def test_the_wheel_that_fits_best_is_chosen() -> None:
    names = [
        "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
        "torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl",
        "Typing_Extensions-4.15.0-py3-none-any.whl", "ray-2.60.0-cp312-cp312-manylinux2014_x86_64.whl",
        "ray-2.60.0-cp312-cp312-manylinux2014_aarch64.whl", "safetensors-1.0-cp38-abi3-manylinux_2_17_x86_64.whl",
        "new-1-cp312-cp312-manylinux_2_40_x86_64.whl", "notes.txt", "broken.whl",
    ]  # fmt: skip
    pins = {"torch": "2.13.0+cpu", "typing-extensions": "4.15.0", "ray": "2.60.0", "safetensors": "1.0", "new": "1"}
    chosen, missing = choose(names, pins, UBUNTU, "3.12.3")
    assert chosen == sorted([names[1], names[2], names[3], names[5]])
    assert missing == ["new==1"], "it needs a newer C library"


def test_the_platforms_of_an_old_system_are_old() -> None:
    found = platforms(Facts(machine="aarch64", glibc="2.17"))
    assert found[:3] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64", "manylinux_2_16_aarch64"]
    assert "manylinux_2_28_aarch64" not in found


# --- pushed over SFTP -------------------------------------------------------------------------------------------

WHEELS = {"big-1.0-py3-none-any.whl": os.urandom(3 * wheelhouse.PIECE + 17), "small-2.0-py3-none-any.whl": b"tiny"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    running = sshd_support.start(tmp_path)
    yield running
    hosts.close_all()
    running.stop()


@pytest.fixture
def step(server: Sshd, valkey: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Step:
    """The step that pushes two wheels to a real node."""
    settings.WHEELHOUSE = tmp_path / "wheelhouse"
    settings.WHEELHOUSE.mkdir()
    for name, content in WHEELS.items():
        (settings.WHEELHOUSE / name).write_bytes(content)
    monkeypatch.setattr(python_env, "pins", lambda engine, site: {"big": "1.0", "small": "2.0"})
    login = Login("te1", server.address, server.port, server.user, server.login().password, server.login().private_key)
    node = registration.register(login, server.host_key.line, None)
    preparation.gather(node)
    run = Run.objects.create(story="prepare", about="x")
    made: Step = run.steps.create(stage=0, kind="wheels", node=node)
    return made


def place(server: Sshd, name: str) -> Path:
    return server.folder / "home" / ".quarterdeck" / "wheels" / name


def test_on_this_machine_too_a_file_that_is_begun_again_keeps_what_it_has_beyond(tmp_path: Path) -> None:
    for pieces in ([b"..cdef"], [b"a", b"b"]):
        LocalHost().put(str(tmp_path / "file"), 0, pieces)
    assert (tmp_path / "file").read_bytes() == b"abcdef"


on_a_server = [pytest.mark.sshd, pytest.mark.valkey, pytest.mark.django_db(transaction=True)]


class TestPushed:
    pytestmark = on_a_server

    def pushed(self, step: Step, most: int = 20) -> list[str]:
        """What the step says until it is done."""
        said = []
        for _turn in range(most):
            found = wheelhouse._push(step)
            said.append(found.detail)
            if isinstance(found, Done):
                return said
        raise AssertionError(said)

    def test_all_of_it_arrives_and_again_nothing_is_sent(self, step: Step, server: Sshd) -> None:
        assert isinstance(wheelhouse._begin(step), Waiting)
        assert self.pushed(step) == ["2 wheels are there"]
        for name, content in WHEELS.items():
            assert hashlib.sha256(place(server, name).read_bytes()).digest() == hashlib.sha256(content).digest()
        assert wheelhouse._begin(step) == Satisfied("2 wheels are there")

    def test_a_push_that_is_cut_into_pieces_goes_on_where_it_stopped(
        self, step: Step, server: Sshd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wheelhouse, "SLICE_SECONDS", 0.0)
        with pytest.raises(AssertionError):
            self.pushed(step, most=3)  # a slice of no time begins nothing
        monkeypatch.setattr(wheelhouse, "SLICE_SECONDS", 0.0001)
        sizes = []
        path = settings.WHEELHOUSE / "big-1.0-py3-none-any.whl"
        for _turn in range(4):
            at = wheelhouse._there(step.node).get("big-1.0-py3-none-any.whl.part", 0)
            sizes.append(at)
            wheelhouse._push_one(step.node, path, at, 0)
        assert sizes == [0, wheelhouse.PIECE, 2 * wheelhouse.PIECE, 3 * wheelhouse.PIECE]
        assert place(server, path.name).read_bytes() == WHEELS[path.name]

    def test_what_arrived_damaged_gets_no_name_and_is_sent_anew(self, step: Step, server: Sshd) -> None:
        wheelhouse._there(step.node)  # makes the directory
        place(server, "big-1.0-py3-none-any.whl.part").write_bytes(b"x" * 1000)
        with pytest.raises(Problem, match=r"big-1.0-py3-none-any.whl did not arrive as it was sent"):
            self.pushed(step)
        assert not place(server, "big-1.0-py3-none-any.whl").exists()
        assert self.pushed(step)[-1] == "2 wheels are there"
        assert place(server, "big-1.0-py3-none-any.whl").read_bytes() == WHEELS["big-1.0-py3-none-any.whl"]

    def test_what_was_sent_and_not_answered_is_not_said_to_be_there(
        self, step: Step, server: Sshd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wheelhouse._there(step.node)
        monkeypatch.setattr(ssh, "ANSWER_SECONDS", 0.5)
        with ExitStack() as line:

            def pieces() -> Iterator[bytes]:
                yield b"one"
                line.enter_context(server.silent())
                yield b"two"

            with pytest.raises(Unreachable):
                hosts.shared_host(step.node).put(str(place(server, "file")), 0, pieces())

    def test_a_file_that_is_begun_again_keeps_what_an_earlier_connection_still_sends(
        self, step: Step, server: Sshd
    ) -> None:
        wheelhouse._there(step.node)
        place(server, "file").write_bytes(b"..cdef")
        hosts.shared_host(step.node).put(str(place(server, "file")), 0, [b"ab"])
        assert place(server, "file").read_bytes() == b"abcdef"

    def test_a_longer_piece_of_another_wheel_is_not_gone_on_with(self, step: Step, server: Sshd) -> None:
        wheelhouse._there(step.node)
        place(server, "small-2.0-py3-none-any.whl.part").write_bytes(b"longer than the wheel")
        assert self.pushed(step)[-1] == "2 wheels are there"
        assert place(server, "small-2.0-py3-none-any.whl").read_bytes() == b"tiny"

    def test_what_is_missing_here_is_named_with_what_fetches_it(self, step: Step) -> None:
        (settings.WHEELHOUSE / "small-2.0-py3-none-any.whl").unlink()
        with pytest.raises(Problem, match=r"1 of 2 wheels for Python .* small==2\.0") as caught:
            wheelhouse._begin(step)
        assert "manage.py wheels cpu --python 3." in caught.value.next_step

    def test_a_directory_that_cannot_be_written_is_said(self, step: Step, server: Sshd) -> None:
        host = hosts.shared_host(step.node)
        with pytest.raises(Problem, match="could not be written"):
            host.put(f"{server.folder}/nowhere/file", 0, [b"x"])
        assert host.run(script("echo still there")).text == "still there\n"

    def test_a_disk_that_is_too_small_is_said_before_anything_is_sent(self, step: Step) -> None:
        step.node.facts_json = {**step.node.facts_json, "disk_free": 1000}
        with pytest.raises(Problem, match="The wheels need 0 MiB, and 0 are free"):
            wheelhouse._begin(step)


@pytest.mark.django_db
def test_a_node_that_is_prepared_from_the_wheelhouse_fetches_nothing() -> None:
    options = Options(wheelhouse=True, index="https://mirror.invalid/simple")
    node = Node.objects.create(name="te1", address="10.0.0.1", preparation=options.to_text())
    stages = [stage[0][0] for stage in preparation.prepare_stages(node.fresh())]
    assert stages == ["facts", "wheels", "environment", "packages", "verification", "facts"]
    command = python_env.packages(Facts(home="/home/u"), preparation.site(node.fresh()))
    assert not isinstance(command, Satisfied)
    assert command.env == {}
    assert command.argv[-2:] == (f"{node.fresh().root_dir}/wheels", "")
    assert "wheels" in runs.step_kinds
