"""The lab itself: hosts that are like servers, can be hurt like servers, and leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nodes.remote.command import script
from nodes.remote.errors import HostProblem
from nodes.remote.ssh import SshHost, connect
from tests.lab import Host, Lab, until
from tests.lab.deck import LabDeck
from tests.lab.records import BASE
from tests.support.deck import ROOT

pytestmark = [pytest.mark.sshd, pytest.mark.lab]


def signed_in(host: Host) -> SshHost:
    return connect(host.login(), host.host_key)


def said(host: Host, text: str) -> str:
    with signed_in(host) as there:
        return there.run(script(text)).text


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    with Lab(2, disk="64m") as lab:
        yield lab


def test_each_host_has_a_name_an_address_files_and_processes_of_its_own(pair: Lab) -> None:
    first, second = pair.hosts
    assert [said(host, "hostname").strip() for host in pair.hosts] == ["te1", "te2"]
    assert first.address in said(first, "ip -4 -o addr show eth0")
    said(first, "echo mine > /tmp/note; echo mine > /etc/note; echo mine > $HOME/own")
    assert said(second, "cat /tmp/note /etc/note $HOME/own 2>/dev/null || echo none").strip() == "none"
    assert first.read("/etc/note") == b"mine\n"
    assert not Path("/etc/note").exists()
    assert str(os.getpid()) not in said(first, "ls /proc")
    assert not first.path(str(ROOT)).exists(), "it sees this machine's own directories"


def test_what_hosts_share_none_of_them_can_change(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("this machine's")
    with Lab(1, share={"/data/shared": tmp_path}) as lab:
        host = lab.hosts[0]
        assert said(host, "cat /data/shared/note") == "this machine's"
        assert said(host, "rm -f /data/shared/note 2>/dev/null || echo refused") == "refused\n"
    assert (tmp_path / "note").read_text() == "this machine's"


def test_hosts_reach_each_other(pair: Lab) -> None:
    port = f"exec 3<>/dev/tcp/{pair.hosts[1].address}/22; head -c 7 <&3"
    assert pair.hosts[0].run("bash", "-c", port) == "SSH-2.0"


def test_a_host_that_is_cut_off_is_silent_and_comes_back_with_all_that_ran(pair: Lab) -> None:
    host = pair.hosts[0]
    host.run("sleep 1000 >/dev/null 2>&1 & echo $! > /tmp/pid")
    host.cut()
    with pytest.raises(HostProblem):
        signed_in(host)
    assert host.run("echo still here") == "still here\n"
    host.restore()
    until(lambda: said(host, "kill -0 $(cat /tmp/pid) && echo alive") == "alive\n", 10, "it is back")
    host.run("kill $(cat /tmp/pid)")


def test_a_slow_host_is_slow_until_it_is_restored(pair: Lab) -> None:
    host = pair.hosts[0]
    host.slow("1mbit")
    slowed = seconds_for_bytes(host, 400_000)
    assert slowed > 2.5
    host.restore()
    assert seconds_for_bytes(host, 400_000) < slowed / 2


def seconds_for_bytes(host: Host, count: int) -> float:
    with signed_in(host) as there:
        began = time.monotonic()
        assert len(there.run(script('head -c "$1" /dev/zero', str(count))).stdout) == count
        return time.monotonic() - began


def test_a_killed_host_loses_its_processes_and_keeps_its_disk_and_its_host_key(pair: Lab) -> None:
    host, key = pair.hosts[1], pair.hosts[1].host_key
    said(host, "echo kept > /root/note; nohup sleep 1000 >/dev/null 2>&1 & true")
    host.kill()
    with pytest.raises(HostProblem):
        signed_in(host)
    host.boot()
    assert host.host_key == key
    assert said(host, "cat /root/note; pgrep sleep || echo nothing runs") == "kept\nnothing runs\n"


def test_a_disk_can_be_full(pair: Lab) -> None:
    host = pair.hosts[0]
    host.fill_disk(leave=4096)
    with signed_in(host) as there:
        answer = there.run(script("head -c 100000 /dev/zero > /root/big"))
    assert b"No space left on device" in answer.stderr
    host.empty_disk()
    said(host, "head -c 100000 /dev/zero > /root/big && rm /root/big")


def test_the_stand_in_replays_what_nvidia_smi_said(pair: Lab) -> None:
    host = pair.hosts[0]
    host.gpus("h200x4", used=[1024])
    table = said(host, "nvidia-smi --query-gpu=index,name,memory.used --format=csv,noheader,nounits")
    assert table.splitlines()[:2] == ["0, NVIDIA H200, 1024", "1, NVIDIA H200, 0"]
    assert "NV18" in said(host, "nvidia-smi topo -m")
    with signed_in(host) as there:
        refused = there.run(script("nvidia-smi --query-gpu=index,fan.colour --format=csv"))
    assert (refused.status, refused.text) == (2, 'Field "fan.colour" is not a valid field to query.\n')


def test_nothing_is_left_of_a_lab() -> None:
    lab = Lab(2)
    assert lab.record is not None
    folder, bridge = lab.record.folder, lab.record.bridge
    pids = [int((host.folder / "pid").read_text().split()[0]) for host in lab.hosts]
    lab.close()
    assert leftovers(folder, bridge, pids) == []


def leftovers(folder: Path, bridge: str, pids: list[int]) -> list[str]:
    """What can still be found of a lab."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    found = [line for line in links.splitlines() if bridge in line or f"ql{folder.name}-" in line]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if f"{folder}/" in line]
    found += [str(pid) for pid in pids if Path(f"/proc/{pid}").exists()]
    return found + ([str(folder)] if folder.exists() else [])


_HOLD = "from tests.lab import Lab; lab = Lab(2); print(lab.record.folder, flush=True); input()"


def test_the_lab_of_a_killed_test_is_cleared_away_by_the_next_one() -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, env={**os.environ, "DJANGO_SETTINGS_MODULE": "controlplane.settings"})
    with holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        pids = [int((host / "pid").read_text().split()[0]) for host in folder.glob("te*")]
        assert len(pids) == 2
        holder.send_signal(signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10, "its hosts end with it")
    assert (folder / "owner.json").exists()
    with Lab(1) as lab:
        assert lab.record is not None
        assert lab.record.folder == folder or not folder.exists()
    assert leftovers(folder, f"qdlab{folder.name}", pids) == []


def test_bin_lab_is_for_people() -> None:
    def lab(*words: str) -> str:
        done = subprocess.run(["bin/lab", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    if Lab.standing() is not None:
        pytest.skip("somebody's own lab is up")
    printed = lab("up", "2")
    try:
        standing = Lab.standing()
        assert standing is not None
        for host in standing.hosts:
            assert host.address in printed
            assert host.host_key.fingerprint in printed
        assert host.password in printed
        lab("cut", "te2")
        assert lab("status").count("cut off") == 1
        lab("restore", "te2")
        lab("kill", "te1")
        assert [line.split()[-1] for line in lab("status").splitlines() if " te" in line] == ["off", "up"]
        lab("boot", "te1")
        assert said(standing["te1"], "hostname") == "te1\n"
    finally:
        lab("down")
    assert Lab.standing() is None
    assert standing.record is not None
    assert leftovers(standing.record.folder, standing.record.bridge, []) == []


@pytest.mark.valkey
def test_a_whole_quarterdeck_with_the_lab_registered(lab_deck: LabDeck, lab4: Lab) -> None:
    for host in lab4.hosts:
        facts = lab_deck.facts(host.name)
        assert facts["home"] == "/root", json.dumps(facts)
    assert BASE.exists()


def test_a_host_reaches_what_this_machine_reaches_through_the_door_and_nothing_without_it(
    pair: Lab, tmp_path: Path
) -> None:
    (tmp_path / "page").write_text("found")
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/page"
        assert fetch(pair.hosts[0], url, through="http://{}:3128") == "found"
        assert fetch(pair.hosts[0], url, through="") == "refused"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


_FETCH = """
import sys, urllib.request
proxies = {"http": sys.argv[2]} if sys.argv[2] else {}
try:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    print(opener.open(sys.argv[1], timeout=5).read().decode())
except OSError:
    print("refused")
"""


def fetch(host: Host, url: str, through: str) -> str:
    gateway = host.address.rpartition(".")[0] + ".1"
    return host.run("python3", "-c", _FETCH, url, through.format(gateway)).strip()
