"""Every builder of commands, given anything that can be typed: what was typed arrives whole, and never as shell."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane.secrets import Secret
from deployments import commands
from nodes import access
from nodes.facts import Facts, Gpu
from nodes.recipes import Site, blocks, hosts_file, models, python_env, ray, removal, trust
from nodes.recipes.base import base_packages
from nodes.remote import job
from nodes.remote.command import Command, command, python, script
from nodes.remote.root import PASSWORD, PASSWORDLESS, as_root

PLAN = ray.port_plan(20600)
CPU = Facts(home="/home/u", python_path="/usr/bin/python3", python="3.11.2")
CUDA = replace(CPU, gpus=(Gpu(0, "NVIDIA A10"),))
BARE = replace(CPU, package_manager="apt-get", tools=())
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
PEERS = [trust.Peer("te1", "10.0.0.1", 22, "root", KEY)]
NAMED = [hosts_file.Named("te1", "10.0.0.1")]


def made(found: Any) -> Command:
    assert isinstance(found, Command), found
    return found


#: What somebody typed → the command it becomes.
BUILDERS: dict[str, Callable[[str], Command]] = {
    "venv": lambda t: made(python_env.environment(CPU, Site(t, python=t))),
    "conda": lambda t: made(python_env.environment(
        CPU, Site("/srv", kind="conda", path=t, installer=t, conda_python=t))),
    "existing": lambda t: made(python_env.environment(CPU, Site("/srv", kind="existing", path=t))),
    "packages": lambda t: made(python_env.packages(CPU, Site(t, pip_index=t, extra_index=t, torch_cpu_index=t))),
    "verification": lambda t: made(python_env.verification(CUDA, Site(t))),
    "fetch a model": lambda t: models.fetched(Site(t), t, {"model": t, "files": [{"path": t}]}, Secret(t)),
    "sum a model": models.summed,
    "list a model": lambda t: models.listed(Site(t), t),
    "room for a model": lambda t: models.room(t, t),
    "copy a model": lambda t: models.copied(t, [(t, 1, t)], ["ssh", t]),
    "head": lambda t: ray.start_head(CPU, Site(t), PLAN, "10.0.0.1", Secret(t), {t: 1.0}),
    "worker": lambda t: ray.start_worker(CPU, Site(t), PLAN, "10.0.0.2", Secret(t), t),
    "look at Ray": lambda t: ray.view(Site(t), PLAN, t, 1.0),
    "follow Ray": lambda t: ray.follow(Site(t), PLAN, t, 1.0),
    "clean up after Ray": lambda t: ray.clean_up(Site(t)),
    "blocks": lambda t: blocks.edit(blocks.Block(t, t, t), files={t: t.encode()}, gone=(t,)),
    "hosts": lambda t: made(hosts_file.names(CPU, t, NAMED, hostname=t)),
    "base packages by apt": lambda t: made(base_packages(replace(BARE, python=t))),
    "base packages by dnf": lambda t: made(base_packages(replace(BARE, package_manager="dnf", python=t))),
    "trust": lambda t: made(trust.trust(CPU, t, PEERS, t, Secret(t))),
    "take trust away": trust.removal,
    "take a cluster's trust away": lambda t: made(
        removal.cluster_trust(replace(CPU, blocks={"config": {t: t}}, cluster_keys={t: t}), Site(t))),
    "take a name away elsewhere": lambda t: made(
        removal.name_elsewhere(replace(CPU, blocks={"hosts": {t: f"10.0.0.1 {t}\n"}}), t)),
    "take a host key away elsewhere": lambda t: made(
        removal.trust_elsewhere(replace(CPU, blocks={"known_hosts": {t: f"{t} {KEY}\n"}}), t)),
    "take files away": lambda t: removal.own_files(CPU, Site(t), models=True),
    "take the key away": lambda t: removal.own_key(Site(t), t),
    "take blocks away": lambda t: made(removal.hosts_file(replace(CPU, blocks={"hosts": {t: t}}), Site(t))),
    "serve": lambda t: commands.serve(
        site=Site(t), facts=CUDA, plan=PLAN, address=t, name=t, model=t, port=1, api_key=Secret(t), options={}),
    "root": lambda t: as_root(command("tool", t), PASSWORDLESS, Secret(t)),
    "root by password": lambda t: as_root(command("tool", t, env={"A": t}), PASSWORD, Secret(t)),
    "remove jobs": lambda t: job.remove([t, t]),
    "a key line": lambda t: script(access._INSTALL_KEY, t),
    "a program": lambda t: python(t, "print()", t, env={"X": t}),
    "elsewhere": lambda t: command("ls", t, cwd=t),
}
TYPED = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=200)
#: How a program's text is handed over: the word after one of these is shell or Python and must be a constant.
_PROGRAM_FOLLOWS = ("-c", "-euc")


def heard(commands_: list[Command]) -> list[list[str]]:
    """The words and the environment that each command's program receives, of a real shell that reads its script."""
    lines = []
    for each in commands_:
        told = replace(each, argv=("printf", r"%s\0", *each.argv), cwd="")
        values = "".join(f' "${name}"' for name in each.env)
        script_ = job.run_script(told).decode().replace("exec printf", "printf", 1)
        lines.append(f"({script_.rstrip()}{values}\nprintf '\\0|\\0')\n")
    printed = subprocess.run(["sh"], input="".join(lines).encode(), capture_output=True, check=True).stdout
    return [part.removesuffix("\0").split("\0") for part in printed.decode().split("\0\0|\0")[:-1]]


@settings(max_examples=25, deadline=None)
@example("'; touch /tmp/owned; '")
@example("$(id) `id` ${IFS}\n-rf * ~ \\ \" ' # ! & | ; < > ( )")
@example("世界 \u202e\u0000".replace("\0", "") + "é" * 5000)
@example("x" * 10_000)
@example("\r\n\t\x1b[31m\x7f")
@given(typed=TYPED)
def test_what_was_typed_arrives_whole_in_every_command(typed: str) -> None:
    built = [build(typed) for build in BUILDERS.values()]
    for each, words in zip(built, heard(built), strict=True):
        wanted = [*map(_plain, each.argv), *map(_plain, each.env.values())]
        assert words == wanted


@settings(max_examples=25, deadline=None)
@example("'; touch /tmp/owned; '")
@given(typed=TYPED)
def test_no_program_that_is_run_depends_on_what_was_typed(typed: str) -> None:
    for name, build in BUILDERS.items():
        assert _programs(build(typed)) == _programs(build("plain")), name


def _programs(command_: Command) -> list[str]:
    words = list(command_.argv)
    texts = [words[at + 1] for at, word in enumerate(words[:-1]) if word in _PROGRAM_FOLLOWS and at < 3]
    return texts + [content.decode() for name, content in command_.files.items() if name.endswith((".py", ".sh"))]


def _plain(text: str) -> str:
    return text.reveal() if isinstance(text, Secret) else text


@pytest.mark.parametrize("name", BUILDERS)
def test_a_nul_is_refused_or_stands_in_a_file(name: str) -> None:
    try:
        sent = job.run_script(BUILDERS[name]("a\0b"))
    except ValueError:
        return
    assert b"\0" not in sent


def test_a_secret_is_in_no_argument_of_any_command() -> None:
    for name, build in BUILDERS.items():
        for word in build("plain").argv:
            assert not isinstance(word, Secret), name
