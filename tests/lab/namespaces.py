"""Hosts as Linux namespaces: what root can make of one machine. A bridge, and a veth pair to each host."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodes.remote.ssh import HostKey
from tests.lab.host import PASSWORD, Host, until
from tests.lab.records import Record, began, end, ip
from tests.support.sshd import keygen

MAIN = Path(__file__).with_name("host_main.py")
STAND_IN = Path(__file__).with_name("replaying_nvidia_smi.py")
GPUS = Path(__file__).parent / "gpus"
DOOR = 3128
NO_APPS = {"apps.csv": b"pid, process_name, gpu_uuid, used_gpu_memory [MiB], used_memory [MiB]\n"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The password, as crypt(3) has it.
HASH = (
    "$6$quarterdecklab$XMSBBAUmRVkRiXZeHLTbdaNIkUereC9HnqiOdxkbO.oLMGJT.A5q8pTjR9R4vV3Hkq0iPosqoREHMdTEsYwdM1"
)
#: deck has no root's rights at all; ann has sudo, sam has it with the password, where sudo is installed.
ACCOUNTS = {"deck": 1900, "ann": 1901, "sam": 1902}
SUDO = "ann ALL=(ALL) NOPASSWD: ALL\nsam ALL=(ALL) ALL\n"
SSHD = """
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
PermitRootLogin yes
PasswordAuthentication yes
UsePAM no
UseDNS no
MaxStartups 200
MaxSessions 100
Subsystem sftp internal-sftp
SetEnv PATH={path} {settings}
"""


def possible() -> bool:
    """Whether this machine lets us: root, and a kernel with all that is needed."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    tried = "mkdir /tmp/u /tmp/w && mount -t overlay overlay -o lowerdir=/usr,upperdir=/tmp/u,workdir=/tmp/w /usr"
    words = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "sh", "-c",
             f"mount -t tmpfs tmpfs /tmp && {tried}"]
    return subprocess.run(words, capture_output=True).returncode == 0


@dataclass
class NamespaceHost(Host):
    """A host with its own network, processes, files and name. ``kept``: it outlives this process."""

    spec: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def link(self) -> str:
        """Its cable's end at the bridge."""
        return str(self.spec["link"])

    @property
    def pid(self) -> int:
        """Its process 1, as this machine numbers it."""
        return int((self.folder / "pid").read_text().split()[0])

    @property
    def host_key(self) -> HostKey:
        line = (self.folder / "disk/upper/etc/ssh/ssh_host_ed25519_key.pub").read_text()
        return HostKey(" ".join(line.split()[:2]))

    def command(self, *words: str) -> list[str]:
        settings = [f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8"]
        return ["nsenter", "-t", str(self.pid), "--all", "--root", "env", "-i", "-C", "/", *settings, *words]

    def path(self, inside: str) -> Path:
        """By way of its process 1, so that overlays are seen as the host sees them."""
        return Path(f"/proc/{self.pid}/root", inside.lstrip("/"))

    def cut(self) -> None:
        ip("link", "set", self.link, "down")

    def restore(self) -> None:
        ip("link", "set", self.link, "up")
        for words, device in self._ends():
            subprocess.run([*words, "tc", "qdisc", "del", "dev", device, "root"], capture_output=True)

    def slow(self, rate: str) -> None:
        shape = ["root", "tbf", "rate", rate, "burst", "32kb", "latency", "100ms"]
        for words, device in self._ends():
            subprocess.run([*words, "tc", "qdisc", "replace", "dev", device, *shape], check=True)

    def _ends(self) -> tuple[tuple[list[str], str], ...]:
        """Of its cable: where each is, and what it is called there."""
        return ([], self.link), (["nsenter", "-t", str(self.pid), "--net"], "eth0")

    def kill(self) -> None:
        end(self.folder)
        if self.process is not None:
            self.process.wait(10)
            self._close_pipes()
        ip("link", "del", self.link, check=False)

    def boot(self) -> None:
        line = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--propagation",
                "private", sys.executable, "-IS", str(MAIN), str(self.folder)]
        with (self.folder / "console").open("ab") as console:
            self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=console,
                                            start_new_session=True, env={"PATH": PATH}, cwd="/")
        assert self.process.stdin is not None
        pid = self._said()
        (self.folder / "pid").write_text(f"{pid} {began(int(pid))}")
        self._plug_in(pid)
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()
        assert self._said() == "up", (self.folder / "console").read_text()
        if self.spec["kept"]:
            self._close_pipes()
            self.process.returncode = 0  # nobody's child to wait for any more
        until(self._listens, 10, f"{self.name} answers on port 22")

    def _said(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().strip()
        assert line, f"{self.name} did not start: {(self.folder / 'console').read_text()}"
        return line

    def _plug_in(self, pid: str) -> None:
        peer = ["peer", "name", self.spec["inner"], "address", self.spec["mac"], "netns", pid]
        ip("link", "add", self.link, "type", "veth", *peer)
        ip("link", "set", self.link, "master", self.spec["bridge"], "up")

    def _close_pipes(self) -> None:
        assert self.process is not None
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _listens(self) -> bool:
        try:
            socket.create_connection((self.address, 22), 0.3).close()
        except OSError:
            return False
        return True

    def gpus(self, captured: str, used: Sequence[int] = ()) -> None:
        rows = list(csv.reader((GPUS / captured / "query.csv").read_text().splitlines(), skipinitialspace=True))
        column = rows[0].index("memory.used [MiB]")
        for row, mib in zip(rows[1:], used, strict=False):
            row[column] = f"{mib} MiB"
        table = "".join(", ".join(row) + "\n" for row in rows)
        files = {path.name: path.read_bytes() for path in (GPUS / captured).iterdir()}
        for name, content in {**NO_APPS, **files, "query.csv": table.encode()}.items():
            self.write(f"/usr/local/share/replaying-nvidia-smi/{name}", content)
        self.write("/usr/local/bin/nvidia-smi", STAND_IN.read_bytes(), 0o755)

    @property
    def state(self) -> str:
        """In words, for people."""
        if not (self.folder / "pid").exists():
            return "off"
        link = subprocess.run(["ip", "link", "show", self.link], capture_output=True, text=True)
        return "cut off" if "state DOWN" in link.stdout else "up"

    def fill_disk(self, leave: int = 0) -> None:
        """By making the disk smaller: a file as big as its free space would be that much of this machine's memory."""
        disk = os.statvfs(self.folder / "disk")
        self._resize(str((disk.f_blocks - disk.f_bfree) * disk.f_frsize + max(leave, disk.f_frsize)))

    def empty_disk(self) -> None:
        self._resize(self.spec["disk"])

    def _resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder / "disk")], check=True)


def build(
    record: Record, count: int, disk: str, shm: str, share: Mapping[str, Path] | Sequence[Path],
    settings: Mapping[str, str],
) -> list[Host]:  # fmt: skip
    """All hosts, up and answering on port 22."""
    ip("link", "add", record.bridge, "type", "bridge")
    ip("addr", "add", f"{record.network}.1/24", "dev", record.bridge)
    ip("link", "set", record.bridge, "up")
    _open_door(record)
    keygen(record.folder / "key")
    names = {f"te{i}": f"{record.network}.{125 + i}" for i in range(1, count + 1)}
    common = {"kept": record.kept, "shm": shm, "disk": disk, "share": _shared(share),
              "bridge": record.bridge, "gateway": f"{record.network}.1"}

    def one(name: str) -> Host:
        folder = record.folder / name
        number = name[2:]
        spec = {**common, "name": name, "address": names[name], "link": f"ql{record.number}-{number}",
                "inner": f"qi{record.number}-{number}", "mac": f"02:71:64:00:{record.number:02x}:{int(number):02x}"}
        _lay_out(folder, spec, settings, (record.folder / "key.pub").read_text())
        host = found(record, folder)
        host.boot()
        return host

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, names))


def _open_door(record: Record) -> None:
    """Start the proxy that settings may name: ``http://{gateway}:3128``."""
    (record.folder / "door").mkdir()
    line = [sys.executable, "-IS", str(MAIN.with_name("door.py")), f"{record.network}.1", str(DOOR)]
    with (record.folder / "door/log").open("ab") as log:
        door = subprocess.Popen([*line, *(["stay"] if record.kept else [])], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=log, start_new_session=True, cwd="/")
    (record.folder / "door/pid").write_text(f"{door.pid} {began(door.pid)}")
    assert door.stdout is not None
    assert door.stdout.readline() == b"up\n", (record.folder / "door/log").read_text()
    record.doors.append(door)


def _shared(share: Mapping[str, Path] | Sequence[Path]) -> dict[str, str]:
    """Path on the host → directory here."""
    pairs = share.items() if isinstance(share, Mapping) else ((str(path), path) for path in share)
    return {at: str(path) for at, path in pairs}


def _lay_out(folder: Path, spec: dict[str, Any], settings: Mapping[str, str], key: str) -> None:
    folder.mkdir()
    (folder / "host.json").write_text(json.dumps(spec))
    (folder / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={spec['disk']}", "tmpfs", str(folder / "disk")], check=True)
    etc, tree = folder / "disk/upper/etc", folder / "disk/tree"
    (etc / "ssh").mkdir(parents=True)
    keygen(etc / "ssh/ssh_host_ed25519_key")
    (etc / "hostname").write_text(f"{spec['name']}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {spec['name']}\n::1 localhost\n")
    (etc / "apt/apt.conf.d").mkdir(parents=True)
    (etc / "apt/apt.conf.d/95lab").write_text(f'Acquire::http::Proxy "http://{spec["gateway"]}:{DOOR}";\n')
    (etc / "resolv.conf").write_text("")  # this machine's is out of reach: each look-up would take 10 s
    (etc / "machine-id").write_text(f"{spec['address'].replace('.', ''):0>32}\n")
    text = SSHD.format(path=PATH, settings=" ".join(
        f'"{name}={value.replace("{gateway}", spec["gateway"])}"' for name, value in settings.items()))
    (etc / "ssh/lab_sshd_config").write_text(text)
    _accounts(etc)
    for home, user in (("root", 0), *((f"home/{name}", user) for name, user in ACCOUNTS.items())):
        ssh = tree / home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        (ssh / "authorized_keys").write_text(key)
        _keep_pip_configuration(ssh.parent)
        for path in (ssh.parent, *ssh.parent.rglob("*")):
            os.chown(path, user, user)
        (tree / "root").chmod(0o700)


def _keep_pip_configuration(home: Path) -> None:
    mine = Path.home() / ".config/pip/pip.conf"
    if mine.exists():
        (home / ".config/pip").mkdir(parents=True)
        shutil.copy(mine, home / ".config/pip")


def _accounts(etc: Path) -> None:
    """root and three people; all have the same password."""
    people = ACCOUNTS.items()
    lines = {
        "passwd": [f"{name}:x:{number}:{number}::/home/{name}:/bin/bash" for name, number in people],
        "group": [f"{name}:x:{number}:" for name, number in people],
        "shadow": [f"{name}:{HASH}:19000:0:99999:7:::" for name in ("root", *ACCOUNTS)],
    }
    for name, added in lines.items():
        kept = [line for line in Path("/etc", name).read_text().splitlines()
                if line.partition(":")[0] not in (*ACCOUNTS, "root" if name == "shadow" else "")]
        (etc / name).write_text("\n".join([*kept, *added]) + "\n")
        (etc / name).chmod(0o640 if name == "shadow" else 0o644)
    if Path("/etc/sudoers.d").is_dir():
        (etc / "sudoers.d").mkdir(mode=0o750)
        (etc / "sudoers.d/lab").write_text(SUDO)
        (etc / "sudoers.d/lab").chmod(0o440)


def found(record: Record, folder: Path) -> NamespaceHost:
    """A host that was laid out, running or not."""
    spec = json.loads((folder / "host.json").read_text())
    key = (record.folder / "key").read_text()
    return NamespaceHost(spec["name"], spec["address"], 22, "root", key, PASSWORD, folder, spec)
