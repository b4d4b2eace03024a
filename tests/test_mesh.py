"""Between nodes: rounds in which no pair disturbs another, what is measured, and nodes that trust each other."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes import hosts, mesh, preparation, registration, runs
from nodes.models import Cluster, Link, Node, Run
from nodes.options import Options
from nodes.recipes import hosts_file, trust
from nodes.registration import Login
from nodes.remote import job, meet
from nodes.remote.command import python
from nodes.states import RunState
from nodes.watch import Watch
from tests.lab import Lab
from tests.lab.host import until

BASE = settings.PORT_BASE


@given(st.integers(2, 40))
def test_every_pair_meets_once_and_nobody_is_twice_in_a_round(count: int) -> None:
    found = mesh.rounds(range(count))
    pairs = [frozenset(pair) for pairs in found for pair in pairs]
    assert sorted(map(sorted, pairs)) == sorted(map(sorted, itertools.combinations(range(count), 2)))
    assert len(found) == count - 1 + count % 2
    for pairs_of_round in found:
        nodes = [node for pair in pairs_of_round for node in pair]
        assert len(nodes) == len(set(nodes))


def test_ports_that_nobody_answers_on_are_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as open_one, socket.create_server(("127.0.0.1", 0)) as other:
        port, gone = open_one.getsockname()[1], other.getsockname()[1]
        other.close()
        assert meet.closed("127.0.0.1", [port, gone]) == [gone]


def test_a_port_in_use_is_named_and_the_others_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        first = used.getsockname()[1]
        listeners, busy = meet.listen("127.0.0.1", range(first, first + 1))
    assert (listeners, busy) == ([], [first])
    (listener,), _busy = meet.listen("127.0.0.1", range(first, first + 1))
    threading.Thread(target=meet.serve, args=([listener],), daemon=True).start()
    found = meet.meet({"measure": "127.0.0.1", "port": first}, range(0))
    assert 0 < found["rtt_ms"] < 1000
    assert found["gbps_out"] > 0 < found["gbps_in"]


# --- three real hosts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(3) as made:
        yield made


@pytest.fixture
def nodes(lab: Lab, watch: Watch) -> Iterator[list[Node]]:
    made = []
    for host in lab.hosts:
        login = Login(host.name, host.address, host.port, host.user, host.login().password, host.login().private_key)
        made.append(registration.register(login, host.host_key.line, None))
    for run in Run.objects.all():
        finished(run)
    for node in made:
        node.refresh_from_db()
    yield made
    hosts.close_all()


def finished(run: Run, seconds: float = 60) -> Run:
    def over() -> bool:
        runs.advance(run.pk)
        return run.fresh().state in (RunState.DONE, RunState.FAILED)

    until(over, seconds, str(run))
    return run.fresh()


def steps(run: Run) -> list[tuple[str, str, str]]:
    return [(step.kind, step.node.name, step.state) for step in run.steps.select_related("node")]


on_hosts = [pytest.mark.lab, pytest.mark.sshd, pytest.mark.valkey, pytest.mark.django_db(transaction=True)]


class TestOnHosts:
    pytestmark = on_hosts

    def test_each_way_is_measured_and_the_plan_is_told_the_slowest(self, nodes: list[Node]) -> None:
        assert mesh.network_gbps(nodes) is None
        run = finished(mesh.start(nodes, None))
        assert run.state == RunState.DONE, run.reason
        links = {(link.source.name, link.target.name): link for link in Link.objects.all()}
        assert set(links) == set(itertools.permutations(["te1", "te2", "te3"], 2))
        for link in links.values():
            assert (link.problem, link.closed, link.ports) == ("", [], mesh.PORTS)
            assert link.rtt_ms is not None and link.rtt_ms < 100
            assert link.trusted is False, "nobody made them trust each other yet"
        measured = [link.gbps for link in links.values() if link.gbps is not None]
        assert mesh.network_gbps(nodes) == min(measured) > 0

    def test_a_host_that_is_cut_off_is_a_finding_and_no_failure(self, nodes: list[Node], lab: Lab) -> None:
        lab["te3"].cut()
        try:
            run = mesh.start(nodes, None)
            done = mesh._mesh(run.steps.filter(kind="mesh", about=nodes[2].subject)[0])
        finally:
            lab["te3"].restore()
        assert "not measured" in done.detail
        link = Link.objects.filter(target=nodes[2]).get()
        assert "te3" in link.problem
        assert link.gbps is None

    def test_a_port_that_a_program_uses_is_left_to_it(self, nodes: list[Node], lab: Lab) -> None:
        address = lab["te2"].address
        program = f"import socket, sys; s = socket.create_server(('{address}', {BASE})); sys.stdin.read()"
        with hosts.open_host(nodes[1]) as there:
            channel = there.open(python("python3", program))
            until(lambda: f":{BASE} " in lab["te2"].run("ss -ltn"), 10, "the port is in use")
            found = mesh._measured(nodes[0], nodes[1])
            channel.close()
        until(lambda: f":{BASE} " not in lab["te2"].run("ss -ltn"), 10, "the port is free again")
        assert found[nodes[0], nodes[1]]["ports"] == mesh.PORTS - 1
        assert found[nodes[0], nodes[1]]["closed"] == []

    def test_a_clusters_nodes_sign_in_to_each_other_and_know_their_names(self, nodes: list[Node], lab: Lab) -> None:
        own = "# mine\nHost nas\n    User me\n"
        lab["te1"].run(f"mkdir -p ~/.ssh && printf '{own}' > ~/.ssh/config")
        cluster = Cluster.objects.create(name="four a10", head=nodes[0])
        Node.objects.update(cluster=cluster, sudo="passwordless")
        stages = [[(kind, node) for node in nodes] for kind in ("trust", "hosts", "trust-check")]
        run = finished(runs.start("mesh", f"cluster:{cluster.pk}", stages, None))
        assert run.state == RunState.DONE, run.reason
        assert {state for kind, _node, state in steps(run)} == {"done"}
        assert set(Link.objects.values_list("trusted", flat=True)) == {True}
        assert lab["te1"].run("getent -s files hosts te3").split() == [lab["te3"].address, "te3"]
        assert lab["te1"].run("cat ~/.ssh/config").endswith(f"Host *\n# <<< quarterdeck four-a10 <<<\n{own}")
        for node in nodes:
            preparation.gather(node)
        again = finished(runs.start("mesh", f"cluster:{cluster.pk}", stages[:2], None))
        assert {state for _kind, _node, state in steps(again)} == {"skipped"}
        assert set(Link.objects.values_list("trusted", flat=True)) == {True}
        # Made anew where it was lost; who signs in to whom is not known until somebody looks.
        lab["te1"].run(f"printf '{own}' > ~/.ssh/config")
        preparation.gather(nodes[0])
        anew = finished(runs.start("mesh", f"cluster:{cluster.pk}", stages[:1], None))
        assert ("trust", "te1", "done") in steps(anew)
        assert set(Link.objects.filter(source=nodes[0]).values_list("trusted", flat=True)) == {None}
        # And all of it is taken away again.
        for node in nodes:
            for number, command in enumerate((trust.removal("four-a10"), hosts_file.removal("four-a10"))):
                place = f"{node.root_dir}/jobs/removal{number}"
                with hosts.open_host(node) as there:
                    job.start(there, place, command)
                until(lambda node=node, place=place: lab[node.name].path(f"{place}/exit").exists(), 10, "it has ended")  # type: ignore[misc]
        assert lab["te1"].run("cat ~/.ssh/config") == own
        assert lab["te1"].run("grep -c quarterdeck /etc/hosts || true").strip() == "0"
        assert lab["te1"].run("ls ~/.ssh").split() == ["authorized_keys", "config", "known_hosts"]

    def test_a_node_without_root_has_the_steps_left_out_that_need_it(self, nodes: list[Node]) -> None:
        node = nodes[0]
        node.facts_json = {**node.facts_json, "uid": 1000}
        node.sudo = Node.Sudo.NONE
        node.preparation = Secret(Options(hosts=True, base=True).to_text())
        node.save()
        run = Run.objects.create(story="mesh", about="x")
        for kind in ("hosts", "base"):
            begun = runs.step_kinds[kind].begin(run.steps.create(stage=0, kind=kind, node=node))
            assert "left out: it needs root" in str(getattr(begun, "detail", begun))


def test_one_node_is_no_mesh() -> None:
    with pytest.raises(Problem, match="nothing to measure"):
        mesh.start([Node(name="te1", address="10.0.0.1")], None)
