"""Steps outside Quarterdeck's own directory: base packages, names, trust, and how any of it is done as root."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes.facts import Facts
from nodes.recipes import Satisfied, blocks, hosts_file, removal, trust
from nodes.recipes.base import base_packages
from nodes.recipes.blocks import Block
from nodes.recipes.hosts_file import Named
from nodes.recipes.trust import Peer
from nodes.remote import job
from nodes.remote.command import Command, command, script
from nodes.remote.readings import parse_blocks
from nodes.remote.root import PASSWORD, PASSWORDLESS, ROOT, as_root

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
UBUNTU = Facts(
    home="/home/u", hostname="vm", package_manager="apt-get", tools=("cc", "git", "curl", "rsync"), python="3.12.3",
    python_path="/usr/bin/python3", python_has_venv=True, python_has_headers=True)


def run_job(made: Command | Satisfied, place: Path, **env: str) -> subprocess.CompletedProcess[str]:
    assert isinstance(made, Command), made
    place.mkdir(exist_ok=True)
    for name, content in {**made.files, "run": job.run_script(made)}.items():
        (place / name).write_bytes(content)
    return subprocess.run(["sh", str(place / "run")], env={**os.environ, "QD_JOB": str(place), **env}, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=60)  # fmt: skip


# --- base packages ----------------------------------------------------------------------------------------------


def wanted(facts: Facts) -> tuple[str, ...]:
    made = base_packages(facts)
    return made.argv[4:] if isinstance(made, Command) else ()


def test_what_is_there_is_not_installed() -> None:
    assert base_packages(UBUNTU) == Satisfied("cc, git, curl, rsync")


def test_only_what_is_missing_is_installed_under_the_systems_own_names() -> None:
    bare = dataclasses.replace(UBUNTU, tools=("git",), python_has_venv=False, python_has_headers=False)
    assert wanted(bare) == ("build-essential", "curl", "rsync", "python3", "python3.12-venv", "python3.12-dev")
    fedora = dataclasses.replace(bare, package_manager="dnf", python="")
    assert wanted(fedora) == ("gcc", "gcc-c++", "make", "curl", "rsync", "python3", "python3-devel")


def test_the_parts_of_a_python_that_did_not_come_with_the_system_are_not_looked_for_there() -> None:
    own = dataclasses.replace(UBUNTU, python_path="/data/miniconda3/bin/python3", python_has_headers=False)
    assert isinstance(base_packages(own), Satisfied)


def test_a_system_with_another_package_manager_is_told() -> None:
    with pytest.raises(Problem, match="neither apt nor dnf here to install rsync"):
        base_packages(dataclasses.replace(UBUNTU, package_manager="", tools=("cc", "git", "curl")))


@pytest.mark.parametrize(("manager", "packages"), [("apt-get", "build-essential"), ("dnf", "gcc gcc-c++ make")])
def test_the_package_manager_is_asked_without_a_question(tmp_path: Path, manager: str, packages: str) -> None:
    (tmp_path / manager).write_text('#!/bin/sh\necho "asked $*"\n')
    (tmp_path / manager).chmod(0o755)
    facts = dataclasses.replace(UBUNTU, package_manager=manager, tools=("git", "curl", "rsync"))
    said = run_job(base_packages(facts), tmp_path / "job", PATH=f"{tmp_path}:{os.environ['PATH']}").stdout
    assert " -y " in said.splitlines()[-1]
    assert said.rstrip().endswith(packages)


# --- blocks in other people's files -----------------------------------------------------------------------------


def test_a_block_is_put_changed_and_taken_away_and_nothing_else_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n10.0.0.9 nas")
    path.chmod(0o644)
    for body in ("10.0.0.1 te1\n", "10.0.0.1 te1\n10.0.0.2 te2\n"):
        done = run_job(blocks.edit(Block(str(path), "c", body, top=True)), tmp_path / "job")
        assert done.returncode == 0, done.stdout
        assert parse_blocks(path.read_text()) == {"c": body}
        assert path.read_text().endswith("<<<\n127.0.0.1 localhost\n10.0.0.9 nas\n")
    assert path.stat().st_mode & 0o777 == 0o644
    run_job(blocks.edit(Block(str(path), "c", "")), tmp_path / "job")
    assert path.read_text() == "127.0.0.1 localhost\n10.0.0.9 nas\n"
    assert [one.name for one in tmp_path.glob("hosts*")] == ["hosts"]


def test_the_blocks_of_two_clusters_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "new" / "hosts"
    run_job(blocks.edit(Block(str(path), "a", "1\n"), Block(str(path), "a.b", "2\n")), tmp_path / "job")
    assert path.stat().st_mode & 0o777 == 0o600
    run_job(blocks.edit(Block(str(path), "a", "3\n")), tmp_path / "job")
    assert parse_blocks(path.read_text()) == {"a": "3\n", "a.b": "2\n"}


def test_what_others_wrote_may_be_in_any_encoding(tmp_path: Path) -> None:
    path, theirs = tmp_path / "hosts", b"10.0.0.7 caf\xe9 # \xff\xfe\n"
    path.write_bytes(theirs)
    done = run_job(blocks.edit(Block(str(path), "c", "x\n", top=True)), tmp_path / "job", LC_ALL="C")
    assert done.returncode == 0, done.stdout
    assert path.read_bytes().endswith(theirs)
    assert run_job(blocks.drop_lines({str(path): "x\n"}), tmp_path / "job", LC_ALL="C").returncode == 0
    assert path.read_bytes() == theirs


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("mine\n")
    (tmp_path / "config").symlink_to(tmp_path / "real")
    run_job(blocks.edit(Block(str(tmp_path / "config"), "c", "x\n")), tmp_path / "job")
    assert (tmp_path / "config").is_symlink()
    assert "mine\n" in (tmp_path / "real").read_text()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=80))
def test_whatever_stands_in_the_file_is_there_afterwards(tmp_path: Path, text: str) -> None:
    text = text.replace("\r", "").encode(errors="ignore").decode() + "\n"
    path = tmp_path / "file"
    path.write_text(text)
    run_job(blocks.edit(Block(str(path), "c", "x\n")), tmp_path / "job")
    run_job(blocks.edit(Block(str(path), "c", "")), tmp_path / "job")
    assert path.read_text() == text


# --- names and trust --------------------------------------------------------------------------------------------

NAMED = [Named("te2", "10.0.0.2", "vm"), Named("te1", "10.0.0.1", "box.lab"), Named("te3", "10.0.0.3", "vm")]
PEERS = [Peer("te1", "10.0.0.1", 22, "root", KEY), Peer("te2", "10.0.0.2", 2222, "u", KEY)]


def test_nodes_are_named_in_order_with_what_only_they_call_themselves() -> None:
    found = hosts_file.block("c", NAMED)
    assert found.body == "10.0.0.1 te1 box.lab\n10.0.0.2 te2\n10.0.0.3 te3\n"
    assert found.top, "the first line with a name wins, and Debian has 127.0.1.1 for its own"


@pytest.mark.parametrize("bad", ["x\n10.0.0.9 bank", "a b", "#", "localhost", ""])
def test_what_a_node_says_of_itself_cannot_put_more_into_the_others_files(bad: str) -> None:
    made_up = [Named("te1", "10.0.0.1", bad), Named("te2", f"10.0.0.2 {bad}", "two")]
    assert hosts_file.block("c", made_up).body == "10.0.0.1 te1\n"


def test_names_that_are_there_are_not_written_again() -> None:
    there = {"hosts": {"c": hosts_file.block("c", NAMED).body}}
    facts = dataclasses.replace(UBUNTU, blocks=there)
    assert isinstance(hosts_file.names(facts, "c", NAMED), Satisfied)
    assert isinstance(hosts_file.names(facts, "d", NAMED), Command)
    assert isinstance(hosts_file.names(facts, "c", NAMED, "vm"), Satisfied)
    renamed = hosts_file.names(facts, "c", NAMED, "te1")
    assert isinstance(renamed, Command)
    assert renamed.argv[-1] == "te1"


def test_each_host_key_is_pinned_under_name_and_address() -> None:
    made = trust.trust(UBUNTU, "c", PEERS, "ssh-ed25519 AAAA c", Secret("private"))
    assert isinstance(made, Command)
    orders = made.files["edits.json"].decode()
    assert f"te1,10.0.0.1 {KEY}\\n[te2]:2222,[10.0.0.2]:2222 {KEY}\\n" in orders
    assert "restrict,pty ssh-ed25519 AAAA c" in orders
    assert "private" not in " ".join(made.argv) + orders


def test_trust_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    public, private = "ssh-ed25519 AAAA c", Secret("private\n")
    done = run_job(trust.trust(UBUNTU, "c", PEERS, public, private), tmp_path / "job", HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout
    folder = tmp_path / ".ssh"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("authorized_keys", "known_hosts", "config", "quarterdeck_c", "quarterdeck_c.pub"), 0o600)
    assert (folder / "quarterdeck_c").read_text() == "private\n"
    assert not list((tmp_path / "job").glob("file*")), "the key does not lie about in the job"
    there = {path.name: parse_blocks(path.read_text()) for path in folder.iterdir()}
    facts = dataclasses.replace(UBUNTU, blocks=there, cluster_keys={"c": public})
    assert isinstance(trust.trust(facts, "c", PEERS, public, private), Satisfied)
    assert isinstance(trust.trust(facts, "c", PEERS[:1], public, private), Command)
    assert isinstance(trust.trust(facts, "c", PEERS, "ssh-ed25519 BBBB c", private), Command)
    run_job(trust.removal("c"), tmp_path / "job", HOME=str(tmp_path))
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        ("authorized_keys", "known_hosts", "config"), "")


@pytest.mark.parametrize("name", ["te1", "te2"])
def test_what_others_know_of_a_node_is_taken_out_and_the_rest_stays(tmp_path: Path, name: str) -> None:
    """The others' blocks become what they were without the node, down to the byte."""
    public, private, there = "ssh-ed25519 AAAA c", Secret("private\n"), tmp_path / ".ssh"
    peers, fewer = PEERS, [peer for peer in PEERS if peer.name != name]
    wanted = [trust.trust(UBUNTU, "c", each, public, private) for each in (fewer, peers)]
    run_job(wanted[0], tmp_path / "job", HOME=str(tmp_path))
    before = {path.name: path.read_text() for path in there.iterdir()}
    run_job(wanted[1], tmp_path / "job", HOME=str(tmp_path))
    facts = dataclasses.replace(UBUNTU, blocks={path.name: parse_blocks(path.read_text()) for path in there.iterdir()})
    assert removal.knows(facts.blocks, name)
    run_job(removal.trust_elsewhere(facts, name), tmp_path / "job", HOME=str(tmp_path))
    assert {path.name: path.read_text() for path in there.iterdir()} == before


def test_names_are_taken_out_of_all_blocks_as_they_are_by_then(tmp_path: Path) -> None:
    """Three nodes are removed at the same time, each by a job that was made before the others ran."""
    path = tmp_path / "hosts"
    named = [Named(f"te{n}", f"10.0.0.{n}") for n in range(1, 6)]
    wanted = [dataclasses.replace(hosts_file.block(name, named), path=str(path)) for name in ("c", "d")]
    path.write_text("127.0.0.1 localhost te3\n")
    run_job(blocks.edit(*wanted), tmp_path / "job")
    patterns = [removal._lines_about("hosts", name) for name in ("te2", "te3", "te4")]
    jobs = [threading.Thread(target=run_job, args=(blocks.drop_lines({str(path): pattern}), tmp_path / f"job{number}"))
            for number, pattern in enumerate(patterns)]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join()
    left = hosts_file.block("c", [named[0], named[4]]).body
    assert parse_blocks(path.read_text()) == {"c": left, "d": left}
    assert path.read_text().endswith("<<<\n127.0.0.1 localhost te3\n")
    run_job(blocks.drop_lines({str(path): r".*\n"}), tmp_path / "job")
    assert path.read_text() == "127.0.0.1 localhost te3\n", "an empty block goes"


@pytest.mark.parametrize("name", ["te", "te11", "t.1", "10.0.0.1"])
def test_a_node_of_another_name_is_left_where_it_is(name: str) -> None:
    known = {"hosts": {"c": hosts_file.block("c", NAMED).body},
             **{block.file: {"c": block.body} for block in trust._blocks("c", PEERS, "ssh-ed25519 AAAA c")}}
    assert not removal.knows(known, name)
    facts = dataclasses.replace(UBUNTU, blocks=known)
    assert isinstance(removal.name_elsewhere(facts, name), Satisfied)
    assert isinstance(removal.trust_elsewhere(facts, name), Satisfied)


@pytest.mark.parametrize("bad", ["a b", "a\nHost *", "", "a#b", "a,b", "*", 'a"b', "a\0b"])
@pytest.mark.parametrize("field", ["name", "address", "user", "host_key"])
def test_nothing_that_is_more_than_a_word_gets_into_sshs_files(field: str, bad: str) -> None:
    given_ = {"name": "te1", "address": "10.0.0.1", "port": 22, "user": "u", "host_key": KEY}
    if field == "host_key" and bad == "a b":
        return
    with pytest.raises(ValueError, match="SSH's files"):
        Peer(**{**given_, field: bad})  # type: ignore[arg-type]


# --- root -------------------------------------------------------------------------------------------------------

SUDO = f"""#!{sys.executable}
import os, sys
words = sys.argv[1:]
print("sudo", *words[: words.index("--")])
if "-S" in words:
    password = b""
    while not password.endswith(b"\\n"):
        password += os.read(0, 1)
    if password != b"pass'word\\n":
        sys.exit("sudo: 1 incorrect password attempt")
os.environ.clear()
os.execvp("/usr/bin/env", ["env", "PATH=/usr/bin:/bin", *words[words.index("--") + 2:]])
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """PATH with a sudo in front that does as the real one does, but for becoming root."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sudo").write_text(SUDO)
    (tmp_path / "bin" / "sudo").chmod(0o755)
    return f"{tmp_path}/bin:{os.environ['PATH']}"


SAYS = script('echo "$1 in $QD_JOB, $WITH"; cat "$QD_JOB/note"; cat', "it's \"me\"", env={"WITH": "a b"}).with_files(
    {"note": b"a file\n"})


@pytest.mark.parametrize(("how", "asked"), [(PASSWORDLESS, "sudo -n"), (PASSWORD, "sudo -k -S -p ")])
def test_a_command_arrives_at_root_as_it_was(tmp_path: Path, path: str, how: str, asked: str) -> None:
    made = as_root(SAYS, how, Secret("pass'word"))
    done = run_job(made, tmp_path / "job", PATH=path)
    assert done.stdout.splitlines() == [asked, f"it's \"me\" in {tmp_path}/job, a b", "a file"]
    assert "pass" not in " ".join(made.argv) + made.masked()
    assert not (tmp_path / "job" / "sudo").exists(), "the password is gone once it is read"


def test_a_wrong_password_is_said_by_sudo(tmp_path: Path, path: str) -> None:
    done = run_job(as_root(SAYS, PASSWORD, Secret("wrong")), tmp_path / "job", PATH=path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "sudo: 1 incorrect password attempt"
    assert not (tmp_path / "job" / "sudo").exists()


def test_root_itself_needs_no_sudo() -> None:
    assert as_root(SAYS, ROOT, Secret("")) is SAYS


@pytest.mark.parametrize("bad", [command("x", env={"KEY": Secret("s")}), command("x", cwd="/tmp")])
def test_what_cannot_be_handed_to_sudo_is_refused(bad: Command) -> None:
    with pytest.raises(ValueError, match="cannot be handed to sudo"):
        as_root(bad, PASSWORDLESS, Secret(""))
