"""Servers are prepared while everything goes wrong: each step runs once, and no byte of its log is lost.

te1 to te4, te9 and te10 belong to the test that breaks everything, the others to one test each; so these may come in
any order.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Host, Lab, until
from tests.lab.deck import LabDeck
from tests.lab.wheels import build_index

pytestmark = [pytest.mark.lab, pytest.mark.sshd, pytest.mark.valkey]

#: First in the PATH of what SSH runs: a job's script runs under this. It counts on the node which jobs have run, and
#: keeps those that have one of the words of /var/tmp/hold in them in their middle, talking, until that file is gone.
_HOLDING_SH = r"""#!/bin/bash
[ "$1" = ./run ] || exec /bin/sh "$@"
echo "$QD_JOB" >> /var/tmp/ran
while grep -qsFf /var/tmp/hold ./run; do echo "beat ${RANDOM}${RANDOM}"; sleep 0.1; done
exec /bin/sh "$@"
"""
#: The first look at a server, which is no job, takes a while, and leaves a note when it begins.
_SLOW_PYTHON = """#!/bin/sh
touch /tmp/asked
sleep 2
exec /usr/bin/python3 "$@"
"""
#: The step that each host is kept in the middle of, with a word of its script; those of te2 and te3 besides.
HELD = {"te1": ("base", "apt-get"), "te2": ("packages", "packages.py"), "te3": ("verification", "verify.py"),
        "te4": ("environment", "-m venv")}
HELD_BESIDES = {"te2": ("hosts", "edit_blocks.py"), "te3": ("trust", "edit_blocks.py")}
#: te9 gets so many wheels pushed, over a line on which that lasts longer than all that happens to it.
PUSHED_TO, PUSHED, RATE = "te9", 50, "2mbit"
LOOKED_AT = "te10"
STAND_IN_APT = Path(__file__).parent / "lab" / "stand_in_apt_get.sh"
_TOGETHER = """
from controlplane.secrets import Secret
from nodes.models import Cluster, Node
from nodes.options import Options
cluster = Cluster.objects.create(name="four", head=Node.objects.get(name="te1"))
Node.objects.filter(name__in=names).update(cluster=cluster)
for name, options in {"te1": Options(base=True), pushed_to: Options(wheelhouse=True)}.items():
    node = Node.objects.get(name=name)
    node.preparation = Secret(options.to_text())
    node.save()
answer = 0
"""
_ONE_STEP = """
from nodes import runs
from nodes.models import Node
answer = runs.start("mesh", f"mesh:{kind}", [[(kind, Node.objects.get(name=name))]], None).pk
"""
_ENDS = "from controlplane import streams; answer = {job: streams.end(streams.log_key(job)) or 0 for job in jobs}"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(tmp_path_factory.mktemp("index"), padding=60 << 20)


@pytest.fixture(scope="module")
def wheels(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same packages, as a wheelhouse has them."""
    folder = tmp_path_factory.mktemp("wheels")
    for wheel in index.glob("*/*.whl"):
        (folder / wheel.name).hardlink_to(wheel)
    return folder


@pytest.fixture(scope="module")
def hosts(index: Path) -> Iterator[Lab]:
    settings = {"PIP_INDEX_URL": f"file://{index}", "PIP_CONFIG_FILE": "/dev/null"}
    with Lab(10, share=[index], settings=settings) as lab:
        yield lab


@pytest.fixture(scope="module")
def deck(tmp_path_factory: pytest.TempPathFactory, hosts: Lab, wheels: Path) -> Iterator[LabDeck]:
    running = LabDeck(tmp_path_factory.mktemp("deck"), QUARTERDECK_WHEELHOUSE=str(wheels))
    try:
        running.wait_for_address()
        running.register(*hosts.hosts)
        yield running
    finally:
        running.stop()


def drop_ssh(*hosts: Host) -> None:
    """Every SSH connection of the hosts breaks; their sshd go on."""
    for host in hosts:
        host.run("pkill -KILL -f '^sshd: [a-z]+@' || true")


class Middle:
    """Runs that are kept in the middle of a step each, and what was seen of them there."""

    def __init__(self, deck: LabDeck, hosts: Lab, wheels: Path) -> None:
        self.deck, self.hosts = deck, hosts
        self.runs = {(name, HELD[name][0]): deck.prepare(name) for name in HELD}
        self.runs |= {(name, kind): int(deck.do(_ONE_STEP, name=name, kind=kind))
                      for name, (kind, _word) in HELD_BESIDES.items()}
        self.wheels = {path.name: path for path in wheels.iterdir()}
        self.pushed: list[int] = []
        self.look()
        self.push = deck.prepare(PUSHED_TO)

    def jobs(self) -> list[str]:
        """The jobs that are in their middle now."""
        steps = [(step, name, kind) for (name, kind), pk in self.runs.items() for step in self.deck.run(pk)["steps"]]
        return [step["job"] for step, name, kind in steps
                if step["kind"] == kind and step["state"] == "running" and talks(self.hosts[name], step["job"])]

    def look(self) -> int:
        """How many bytes of wheels have come; noted, for none may go back."""
        folder = self.hosts[PUSHED_TO].path("/root/.quarterdeck/wheels")
        sizes: dict[str, int] = {}
        for path in folder.glob("*"):
            with suppress(OSError):  # it just got its name
                name = path.name.removesuffix(".part")
                sizes[name] = max(sizes.get(name, 0), path.stat().st_size)
        self.pushed.append(sum(sizes.values()))
        return self.pushed[-1]

    def survive(self, what: str, happen: Callable[[], object]) -> None:
        """Let it happen in the middle of a look, of a push and of all the jobs; return once all of them go on."""
        host, jobs = self.hosts[LOOKED_AT], self.jobs()
        look = self.deck.check(LOOKED_AT)
        until(host.path("/tmp/asked").exists, 30, "the server is being looked at")
        host.path("/tmp/asked").unlink()
        happen()
        before, pushed = self.deck.do(_ENDS, jobs=jobs), self.look()
        until(lambda: self.look() > pushed + 200_000, 90, f"{what}, and the push goes on")
        until(lambda: all(end > before[job] + 100 for job, end in self.deck.do(_ENDS, jobs=jobs).items()), 90,
              f"{what}, and the logs go on")
        looked = self.deck.finished(look, 90)
        assert looked["state"] == "done", (what, looked["reason"])
        assert self.jobs() == jobs, what

    def let_go(self) -> dict[str, str]:
        """Why each run failed, once all are over; nothing for those that are done."""
        self.hosts[PUSHED_TO].restore()
        for name in HELD:
            self.hosts[name].path("/var/tmp/hold").unlink()
        every = [*self.runs.values(), self.push]
        until(lambda: self.look() and all(self.deck.run(pk)["state"] in ("done", "failed") for pk in every), 180,
              "all are prepared")
        return {str(pk): run["reason"] for pk in every if (run := self.deck.run(pk))["state"] != "done"}


def test_whatever_dies_in_the_middle_of_a_step_it_runs_once_and_its_log_is_whole(
    deck: LabDeck, hosts: Lab, index: Path, wheels: Path
) -> None:
    touched = [hosts[name] for name in (*HELD, PUSHED_TO, LOOKED_AT)]
    for host in touched:
        make_holding(host)
    there = " ".join(f"{index}/*/{path.name}" for path in sorted(wheels.iterdir())[PUSHED:])
    hosts[PUSHED_TO].run(f"mkdir -p ~/.quarterdeck/wheels && cp {there} ~/.quarterdeck/wheels")
    talk_much(hosts["te2"])
    deck.do(_TOGETHER, names=list(HELD), pushed_to=PUSHED_TO)
    middle = Middle(deck, hosts, wheels)
    until(lambda: len(middle.jobs()) == len(middle.runs), 150, "each step is in its middle")
    middle.survive("a worker is killed", lambda: deck.kill("celery"))
    middle.survive("watch is killed", lambda: deck.kill("manage.py", "watch"))
    middle.survive("SSH drops", lambda: drop_ssh(*touched))
    middle.survive("the network is away", lambda: cut_for_a_moment(touched))
    hit = middle.jobs()
    assert middle.let_go() == {}
    jobs = deck.jobs(*touched)
    assert {jobs[job]["name"] for job in hit} == {"base", "environment", "packages", "verification", "hosts", "trust"}
    assert_each_ran_once(touched, jobs)
    assert middle.pushed == sorted(middle.pushed), "a byte was pushed twice"
    assert_wheels_are_whole(hosts[PUSHED_TO], middle.wheels)


def make_holding(host: Host) -> None:
    """Steps are kept in their middle; one of the base packages is missing, where there is a stand-in for apt-get."""
    words = [one[host.name][1] for one in (HELD, HELD_BESIDES) if host.name in one]
    host.write("/var/tmp/hold", "".join(f"{word}\n" for word in words))
    host.write("/usr/local/bin/sh", _HOLDING_SH, 0o755)
    host.write("/usr/local/bin/apt-get", STAND_IN_APT.read_bytes(), 0o755)
    host.run("rm -f /usr/bin/rsync")
    if host.name == PUSHED_TO:
        host.slow(RATE)
    if host.name == LOOKED_AT:
        host.write("/usr/local/bin/python3", _SLOW_PYTHON, 0o755)


def cut_for_a_moment(hosts: list[Host]) -> None:
    for host in hosts:
        host.cut()
    hosts[0].run("sleep 3")
    for host in hosts:
        host.restore()
        if host.name == PUSHED_TO:
            host.slow(RATE)


def talk_much(host: Host) -> None:
    """A banner before the sign-in, and a shell that greets whoever runs a command."""
    host.write("/etc/ssh/banner", "*** Authorised use only ***\n" * 20)
    host.run("echo Banner /etc/ssh/banner >> /etc/ssh/lab_sshd_config; kill -HUP $(cat /run/sshd.pid)")
    host.write("/root/.bashrc", "echo Welcome; echo 'You have mail' >&2\n")


def talks(host: Host, job: str) -> bool:
    log = host.path(f"/root/.quarterdeck/jobs/{job}/log")
    return log.exists() and log.read_bytes().count(b"\n") > 3


def assert_each_ran_once(hosts: list[Host], jobs: dict[str, Any]) -> None:
    counts = [host.path("/var/tmp/ran") for host in hosts]
    ran = [Path(line).name for count in counts if count.exists() for line in count.read_text().splitlines()]
    assert sorted(ran) == sorted(jobs)
    kinds = [(job["node"], job["name"]) for job in jobs.values()]
    assert len(set(kinds)) == len(kinds), "a step had two jobs"


def assert_wheels_are_whole(host: Host, wheels: dict[str, Path]) -> None:
    there = {path.name: path.read_bytes() for path in host.path("/root/.quarterdeck/wheels").iterdir()}
    assert there.keys() == wheels.keys()
    assert [name for name, path in wheels.items() if path.read_bytes() != there[name]] == []


@pytest.mark.parametrize(
    ("name", "left"), [("te5", 0), ("te6", 8 << 20), ("te7", 40 << 20)], ids=["at once", "before pip", "during pip"])
def test_a_disk_that_becomes_full_is_named_and_with_room_it_goes_on(
    deck: LabDeck, hosts: Lab, name: str, left: int
) -> None:
    hosts[name].fill_disk(leave=left)
    run = deck.finished(deck.prepare(name), 60)
    what, next_step = run["reason"].split("\n")
    assert re.search(rf"The disk of {name} is full: [01] MB are free where /root/\.quarterdeck lies\.$", what)
    assert next_step == "Make room there, then start again: what was done already is kept."
    hosts[name].empty_disk()
    run = deck.finished(deck.prepare(name), 120)
    assert (run["state"], run["reason"]) == ("done", "")


def test_fifty_megabytes_on_stderr_before_each_command_are_survived(deck: LabDeck, hosts: Lab) -> None:
    hosts["te8"].write("/root/.bashrc", "head -c 50000000 /dev/zero | tr '\\0' x >&2; touch /tmp/greeted\n")
    run = deck.finished(deck.check("te8"), 60)
    hosts["te8"].write("/root/.bashrc", "")
    assert hosts["te8"].path("/tmp/greeted").exists()
    assert (run["state"], run["reason"]) == ("done", "")


_MANY_THERE = """
from nodes import preparation
from nodes.models import Node
known = Node.objects.get(name=name)
made = [Node.objects.create(name=f"mute{n}", address=known.address, user=f"u{n}", host_key=known.host_key,
                            facts_json=known.facts_json) for n in range(30)]
answer = [preparation.check(node, None).pk for node in made]
"""
_NONE_THERE = """
from nodes import runs
from nodes.models import Node, Run
for run in Run.objects.filter(pk__in=pks):
    runs.cancel(run, "enough")
answer = Node.objects.filter(name__startswith="mute").delete()[0]
"""


def test_hosts_that_accept_and_say_nothing_delay_nobody_and_are_named(deck: LabDeck, hosts: Lab) -> None:
    host = hosts["te8"]
    until(lambda: deck.state("te8") == "new", 30, "te8 was looked at")
    host.run("kill -STOP $(cat /run/sshd.pid)")
    drop_ssh(host)
    looks = deck.do(_MANY_THERE, name="te8")
    began = time.monotonic()
    for _again in range(3):
        assert deck.finished(deck.check("te7"), 30)["state"] == "done"
    assert time.monotonic() - began < 15
    deck.do(_NONE_THERE, pks=looks)
    until(lambda: deck.state("te8") == "unreachable", 60, "it is called unreachable")
    assert "te8 (" in deck.reason("te8")
    assert "cannot be reached" in deck.reason("te8")
    host.run("kill -CONT $(cat /run/sshd.pid)")
    until(lambda: deck.state("te8") == "new", 60, "it is back")
