"""What needs root on a node, done there for real: apt-get, sudo with a password and without; and taken away again.

Each host of the lab lays its own files over this machine's, so what apt and the steps write stays on the host.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes import access, hosts, logs, mesh, registration, removal, runs
from nodes.models import Cluster, Node, Run
from nodes.options import Options
from nodes.registration import Login
from nodes.remote.readings import parse_blocks
from nodes.states import RunState
from tests.lab import PASSWORD, Host, Lab, until

pytestmark = [
    pytest.mark.lab, pytest.mark.sshd, pytest.mark.valkey, pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("watch")]  # fmt: skip

#: Small, and what the recipe for base packages asks for.
PACKAGE = "rsync"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(3) as made:
        yield made
    hosts.close_all()


def register(host: Host, user: str, **more: object) -> Node:
    login = Login(host.name, host.address, host.port, user, private_key=Secret(host.key), **more)  # type: ignore[arg-type]
    return registration.register(login, host.host_key.line, None)


def finished(run: Run, seconds: float = 90) -> Run:
    def over() -> bool:
        runs.advance(run.pk)
        return run.fresh().state in (RunState.DONE, RunState.FAILED)

    until(over, seconds, f"{run} is over: {list(run.steps.values_list('kind', 'state', 'reason'))}")
    return run.fresh()


def states(run: Run) -> dict[tuple[str, str], str]:
    return {(step.kind, step.node.name): step.state for step in run.steps.select_related("node")}


def log(run: Run, kind: str) -> str:
    job = run.steps.get(kind=kind).job
    assert job is not None
    return logs.tail(job)


def installed(command: list[str]) -> bool:
    """Whether dpkg says so, where ``command`` runs what follows it."""
    said = subprocess.run([*command, "dpkg-query", "-W", "-f", "${Status}", PACKAGE], capture_output=True, text=True)
    return said.stdout == "install ok installed"


@pytest.mark.sudo
def test_base_packages_are_installed_by_the_real_apt_through_sudo_and_this_machine_stays_as_it_is(lab: Lab) -> None:
    host, before = lab["te1"], this_machine()
    host.run(f"dpkg --purge --force-all {PACKAGE} 2>&1; rm -f /usr/bin/{PACKAGE}")
    fetched = host.command("sh", "-c", f"apt-get -qq update && apt-get -qq -d -y install {PACKAGE}")
    if subprocess.run(fetched).returncode:
        pytest.skip("no package index of the system can be reached from here")
    node = register(host, "ann")
    assert node.sudo == Node.Sudo.PASSWORDLESS
    run = finished(runs.start("mesh", "mesh:apt", [[("base", node)], [("facts", node)]], None))
    assert run.state == RunState.DONE, run.reason
    assert f"Setting up {PACKAGE}" in log(run, "base")
    assert installed(host.command())
    assert PACKAGE in node.fresh().facts.tools
    again = finished(runs.start("mesh", "mesh:apt", [[("base", node.fresh())]], None))
    assert states(again) == {("base", "te1"): "skipped"}
    assert this_machine() == before


def this_machine() -> tuple[bool, list[float]]:
    """What would be different here if a host's apt had written here."""
    files = (Path(f"/var/lib/dpkg/info/{PACKAGE}.list"), Path(f"/usr/bin/{PACKAGE}"))
    return installed([]), [path.stat().st_mtime for path in files if path.exists()]


@pytest.mark.sudo
def test_sudo_with_a_password_without_one_and_none_at_all(lab: Lab) -> None:
    with pytest.raises(Problem, match="does not take this password"):
        register(lab["te2"], "sam", root=access.WITH_PASSWORD, sudo_password=Secret("wrong"))
    nodes = [register(lab["te1"], "ann"), register(lab["te3"], "deck"),
             register(lab["te2"], "sam", root=access.WITH_PASSWORD, sudo_password=Secret(PASSWORD))]
    assert [node.sudo for node in nodes] == ["passwordless", "none", "password"]
    together(nodes)
    run = finished(runs.start("mesh", "mesh:names", [[("hosts", node) for node in nodes]], None))
    assert states(run) == {("hosts", "te1"): "done", ("hosts", "te2"): "done", ("hosts", "te3"): "skipped"}
    for name in ("te1", "te2"):
        assert lab[name].run("getent -s files hosts te3").split() == [lab["te3"].address, "te3"]
        assert lab[name].run("stat -c '%U %a' /etc/hosts") == "root 644\n"
        assert lab[name].run("hostname") == f"{name}\n"
    assert PASSWORD not in lab["te2"].run("cat /home/sam/.quarterdeck/jobs/*/run")
    assert lab["te2"].run("ls /home/sam/.quarterdeck/jobs/*/sudo 2>/dev/null || echo gone") == "gone\n"
    assert "left out: it needs root" in run.steps.get(node__name="te3").reason


def together(nodes: list[Node]) -> Cluster:
    cluster = Cluster.objects.create(name="lab", head=nodes[0])
    Node.objects.filter(pk__in=[node.pk for node in nodes]).update(
        cluster=cluster, preparation=Secret(Options(hosts=True, trust=True).to_text()))
    return cluster


def test_a_removed_node_is_gone_from_its_host_and_from_those_that_knew_it(lab: Lab) -> None:
    own = {host.name: kept(host, "root") for host in lab.hosts}
    nodes = [register(lab["te1"], "root"), register(lab["te2"], "root"), register(lab["te3"], "root")]
    together(nodes)
    for node in nodes:
        node.refresh_from_db()
    stages = [[(kind, node) for node in nodes] for kind in ("hosts", "trust", "trust-check", "facts")]
    assert finished(runs.start("mesh", "mesh:all", stages, None)).state == RunState.DONE
    assert {link.trusted for link in mesh.links(nodes)} == {True}
    Node.objects.filter(name="te3").update(cluster=None)
    Node.objects.filter(name="te2").update(facts_json={**nodes[1].fresh().facts_json, "errors": {"old": "facts"}})

    run = finished(removal.remove(nodes[2].fresh(), None, models=False))
    assert run.state == RunState.DONE, run.reason
    assert not Node.objects.filter(name="te3").exists()
    assert kept(lab["te3"], "root") == own["te3"]
    assert lab["te3"].run("ls /root/.ssh /root/.quarterdeck 2>/dev/null; true").split() == [
        "/root/.ssh:", "authorized_keys", "config", "known_hosts"]
    for name, other in (("te1", "te2"), ("te2", "te1")):
        knows = {path: parse_blocks(lab[name].read(path).decode()) for path in FILES}
        assert {path: "te3" in str(found) for path, found in knows.items()} == dict.fromkeys(FILES, False)
        assert lab[name].run(f"ssh -o BatchMode=yes {other} hostname") == f"{other}\n"
        assert lab[name].run("getent -s files hosts te3 || echo unknown") == "unknown\n"
    once_more = [[(kind, node) for node in nodes[:2]] for kind in ("facts", "hosts", "trust")]
    again = finished(runs.start("mesh", "mesh:all", once_more, None))
    assert {state for (kind, _name), state in states(again).items() if kind != "facts"} == {"skipped"}


FILES = ("/etc/hosts", "/root/.ssh/known_hosts", "/root/.ssh/config")


def kept(host: Host, user: str) -> dict[str, str]:
    """The lines of files that are not Quarterdeck's, without what nobody wrote."""
    names = (*FILES, "/root/.ssh/authorized_keys")
    return {name: host.read(name).decode() if host.path(name).exists() else "" for name in names}
