"""Servers are prepared while everything goes wrong: each step runs once, and no byte of its log is lost.

te1 to te4 are one cluster and are prepared by one test with every step there is, each of them hit in its middle; the
others belong to one test each; so these may come in any order.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Host, Lab, until
from tests.lab.deck import LabDeck
from tests.lab.wheels import build_index

STAND_IN_APT = Path(__file__).parent / "lab" / "stand_in_apt_get.sh"
pytestmark = [pytest.mark.lab, pytest.mark.sshd, pytest.mark.valkey]

#: Packages that te1 to te4 do not have yet when they are prepared: the stand-in for apt-get "installs" the first.
MISSING = "rsync"
#: Of the wheels, those that have to be pushed; at `RATE` that takes seconds.
PUSHED, RATE = 12, "6mbit"
#: First in the PATH of what SSH runs: a job's script runs under this. It counts on the node which jobs have run, and
#: takes a while before and after, saying so all the time; so there is a middle of every step to be hit.
_COUNTING_SH = r"""#!/bin/bash
[ "$1" = ./run ] || exec /bin/sh "$@"
echo "$QD_JOB" >> /var/tmp/ran
beat() { for i in {1..15}; do echo "beat $1 $i ${RANDOM}${RANDOM}"; sleep 0.1; done; }
beat before
/bin/sh "$@"
status=$?
beat after
exit $status
"""
_TOGETHER = """
from controlplane.secrets import Secret
from nodes.models import Cluster, Node
from nodes.options import Options
wanted = Options(wheelhouse=True, base=True, hosts=True, trust=True).to_text()
cluster = Cluster.objects.create(name="four", head=Node.objects.get(name=names[0]))
answer = 0
for node in Node.objects.filter(name__in=names):
    node.cluster, node.preparation = cluster, Secret(wanted)
    node.save()
"""
_LOGS = """
import hashlib
from controlplane import streams
from nodes import logs
from nodes.models import Job
answer = {}
for job in Job.objects.filter(node__name__in=names).select_related("node"):
    live = b"".join(chunk.data for chunk in streams.read(streams.log_key(job.pk), 0))
    answer[str(job.pk)] = {
        "node": job.node.name, "name": job.name, "state": job.state, "place": logs.place(job),
        "live": hashlib.sha256(live).hexdigest(),
        "kept": hashlib.sha256(b"".join(logs.read_all(job))).hexdigest()}
"""


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
    with Lab(8, share=[index], settings=settings) as lab:
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


def drop_ssh(host: Host) -> None:
    """Every SSH connection of the host breaks; its sshd goes on."""
    host.run("pkill -KILL -f '^sshd: [a-z]+@' || true")


def cut_for_a_moment(host: Host) -> None:
    host.cut()
    host.run("sleep 3")
    host.restore()


def test_whatever_dies_in_the_middle_of_a_step_it_runs_once_and_its_log_is_whole(
    deck: LabDeck, hosts: Lab, index: Path, wheels: Path
) -> None:
    four = hosts.hosts[:4]
    missing = sorted(path.name for path in wheels.iterdir())[:PUSHED]
    for host in four:
        make_bare(host, index, missing)
    talk_much(hosts["te2"])
    faults: dict[str, Callable[[Host], object]] = {
        "te1": lambda host: deck.kill("celery"),
        "te2": lambda host: deck.kill("manage.py", "watch"),
        "te3": drop_ssh,
        "te4": cut_for_a_moment,
    }
    deck.do(_TOGETHER, names=[host.name for host in four])
    runs = {host.name: deck.prepare(host.name) for host in four}
    deck.kill("celery")  # in the middle of the first look at the servers, which is no job
    pushes = {host.name: Push(host, missing) for host in four}
    hit: set[str] = set()

    def over() -> bool:
        told = {name: deck.run(pk) for name, pk in runs.items()}
        for name, run in told.items():
            for middle in pushes[name].middle() + jobs_in_the_middle(run, hosts[name], hit):
                hit.add(middle)
                faults[name](hosts[name])
        return all(run["state"] in ("done", "failed") for run in told.values())

    until(over, 300, "all four are prepared")
    assert {name: deck.run(pk)["reason"] for name, pk in runs.items()} == dict.fromkeys(runs, "")
    jobs = deck.do(_LOGS, names=[host.name for host in four])
    kinds = {"base", "environment", "packages", "verification", "hosts", "trust"}
    assert {(job["node"], job["name"]) for job in jobs.values()} == {(name, kind) for name in runs for kind in kinds}
    assert hit == {*jobs, *runs}, "every job and every push was hit in its middle"
    assert_each_ran_once(four, jobs)
    assert_logs_are_whole(hosts, jobs)
    assert_pushes_are_whole(pushes, wheels)


def make_bare(host: Host, index: Path, missing: list[str]) -> None:
    """Without one of the base packages, with all wheels but those, on a slow line, and with programs to be hit."""
    host.write("/usr/local/bin/sh", _COUNTING_SH, 0o755)
    host.write("/usr/local/bin/apt-get", STAND_IN_APT.read_bytes(), 0o755)
    host.run(f"rm -f /usr/bin/{MISSING}; mkdir -p ~/.quarterdeck/wheels; cd ~/.quarterdeck/wheels;"
             f" cp {index}/*/*.whl . && rm {' '.join(missing)}")
    host.slow(RATE)


class Push:
    """What of the missing wheels has come to a host so far."""

    def __init__(self, host: Host, missing: list[str]) -> None:
        self.name, self.host, self.missing = host.name, host, missing
        self.folder = host.path("/root/.quarterdeck/wheels")
        self.sizes = [0]
        self._hit = False

    def middle(self) -> list[str]:
        """The host's name, once, when some of it has come and not all."""
        before = self.sizes[-1]
        self.sizes.append(sum(map(self._size, self.missing)))
        begun = not self._hit and 1 << 20 < before <= self.sizes[-1] and not self.whole
        self._hit = self._hit or begun
        if self.whole:
            self.host.restore()
        return [self.name] if begun else []

    @property
    def whole(self) -> bool:
        return all((self.folder / name).exists() for name in self.missing)

    def _size(self, name: str) -> int:
        """Of the wheel, or of what there is of it: a moment later it may have its name."""
        found = [path.stat().st_size for path in self.folder.glob(f"{name}*")]
        return max(found, default=0)


def talk_much(host: Host) -> None:
    """A banner before the sign-in, and a shell that greets whoever runs a command."""
    host.write("/etc/ssh/banner", "*** Authorised use only ***\n" * 20)
    host.run("echo Banner /etc/ssh/banner >> /etc/ssh/lab_sshd_config; kill -HUP $(cat /run/sshd.pid)")
    host.write("/root/.bashrc", "echo Welcome; echo 'You have mail' >&2\n")


def jobs_in_the_middle(run: dict[str, Any], host: Host, hit: set[str]) -> list[str]:
    """Jobs of this host that have begun to talk, and that nothing has happened to yet."""
    running = [step["job"] for step in run["steps"] if step["state"] == "running" and step["job"]]
    return [job for job in running if job not in hit and talks(host, job)]


def talks(host: Host, job: str) -> bool:
    log = host.path(f"/root/.quarterdeck/jobs/{job}/log")
    return log.exists() and log.read_bytes().count(b"\n") > 3


def assert_each_ran_once(hosts: list[Host], jobs: dict[str, Any]) -> None:
    ran = [Path(line).name for host in hosts for line in host.read("/var/tmp/ran").decode().splitlines()]
    assert sorted(ran) == sorted(jobs)
    kinds = [(job["node"], job["name"]) for job in jobs.values()]
    assert len(set(kinds)) == len(kinds), "a step had two jobs"


def assert_logs_are_whole(hosts: Lab, jobs: dict[str, Any]) -> None:
    for job in jobs.values():
        on_node = hashlib.sha256(hosts[job["node"]].read(f"{job['place']}/log")).hexdigest()
        assert (job["live"], job["kept"]) == (on_node, on_node), job


def assert_pushes_are_whole(pushes: dict[str, Push], wheels: Path) -> None:
    for push in pushes.values():
        assert push.sizes == sorted(push.sizes), "a byte was pushed twice"
        for name in push.missing:
            assert (push.folder / name).read_bytes() == (wheels / name).read_bytes(), (push.name, name)


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


def test_a_host_that_accepts_and_says_nothing_delays_nobody_and_is_named(deck: LabDeck, hosts: Lab) -> None:
    host = hosts["te8"]
    until(lambda: deck.state("te8") == "new", 30, "te8 was looked at")
    host.run("kill -STOP $(cat /run/sshd.pid)")
    drop_ssh(host)
    began = time.monotonic()
    assert deck.finished(deck.check("te7"), 30)["state"] == "done"
    assert time.monotonic() - began < 10
    until(lambda: deck.state("te8") == "unreachable", 60, "it is called unreachable")
    assert "te8 (" in deck.reason("te8")
    assert "cannot be reached" in deck.reason("te8")
    host.run("kill -CONT $(cat /run/sshd.pid)")
    until(lambda: deck.state("te8") == "new", 60, "it is back")
