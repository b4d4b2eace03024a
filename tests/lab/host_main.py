"""Process 1 of a lab host: lays the host's own file system over this machine's, joins the network, runs sshd, reaps.

Run by `namespaces` inside fresh mount, PID, network, UTS and IPC namespaces; standard library only, no project. On
standard input it is told ``go`` once its network interface is there. Of a host that belongs to a test standard input
stays open: when it closes, however the test ended, the host is gone with everything on it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Each host has its own copy of these, laid over this machine's; nothing else of this machine is seen there.
LAID_OVER = ("usr", "etc", "var", "opt")
EMPTY = {"root": 0o700, "tmp": 0o1777, "run": 0o755, "home": 0o755, "data": 0o755, "srv": 0o755, "mnt": 0o755}
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(*words: str) -> None:
    subprocess.run(words, check=True)


def mount(kind: str, at: Path, options: str = "") -> None:
    at.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", kind, *(["-o", options] if options else []), kind, str(at))


def bind(source: str, at: Path) -> None:
    run("mount", "--bind", source, str(at))


def build_root(folder: Path, spec: dict[str, Any]) -> Path:
    """The host's file system, from its disk: a tmpfs of the wished size, which outlives a power cut."""
    disk, root = folder / "disk", folder / "root"
    tree = disk / "tree"
    for name, mode in EMPTY.items():
        (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / name).chmod(mode)
    root.mkdir(exist_ok=True)
    bind(str(tree), root)
    for name in LAID_OVER:
        lay_over(disk, root, name)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        link = Path("/", name)
        if link.is_symlink():
            if not (root / name).is_symlink():
                (root / name).symlink_to(link.readlink())
        elif link.is_dir():
            lay_over(disk, root, name)
    devices(root / "dev", spec["shm"])
    mount("proc", root / "proc")
    mount("sysfs", root / "sys", "ro")
    for at, shared in spec["share"].items():
        (root / at.lstrip("/")).mkdir(parents=True, exist_ok=True)
        bind(shared, root / at.lstrip("/"))
        run("mount", "-o", "remount,bind,ro", str(root / at.lstrip("/")))  # it is not the host's to change
    return root


def lay_over(disk: Path, root: Path, name: str) -> None:
    upper, work = disk / "upper" / name, disk / "work" / name
    for folder in (upper, work, root / name):
        folder.mkdir(parents=True, exist_ok=True)
    mount("overlay", root / name, f"lowerdir=/{name},upperdir={upper},workdir={work}")


def devices(dev: Path, shm: str) -> None:
    mount("tmpfs", dev, "mode=755,size=1m")
    for name in DEVICES:
        (dev / name).touch()
        bind(f"/dev/{name}", dev / name)
    mount("devpts", dev / "pts", "newinstance,ptmxmode=0666,mode=620")
    (dev / "ptmx").symlink_to("pts/ptmx")
    mount("tmpfs", dev / "shm", f"mode=1777,size={shm}")
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        (dev / name).symlink_to(f"/proc/self/fd/{number}")
    (dev / "fd").symlink_to("/proc/self/fd")


def enter(root: Path) -> None:
    """Make it the root, and let go of this machine's: nothing of it stays mounted in here."""
    (root / ".machine").mkdir(exist_ok=True)
    os.chdir(root)
    run("pivot_root", ".", ".machine")
    os.chdir("/")
    run("umount", "--lazy", "/.machine")
    Path("/.machine").rmdir()


def join_network(spec: dict[str, Any]) -> None:
    for words in (
        f"link set {spec['inner']} name eth0", "link set lo up", f"addr add {spec['address']}/24 dev eth0",
        "link set eth0 up", f"route add default via {spec['gateway']}",
    ):  # fmt: skip
        run("ip", *words.split())


def serve() -> None:
    Path("/run/sshd").mkdir(exist_ok=True)
    Path("/run/sshd.pid").unlink(missing_ok=True)
    subprocess.Popen(["/usr/sbin/sshd", "-D", "-E", "/var/log/sshd.log", "-f", "/etc/ssh/lab_sshd_config"])


def end_with_input() -> None:
    """Process 1 ends, and the kernel with it everything else in its namespace."""
    with suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(0)


def main(folder: Path) -> None:
    spec = json.loads((folder / "host.json").read_text())
    # /proc is still this machine's, so this is the number that is known outside.
    print(Path("/proc/self").readlink(), flush=True)
    told = sys.stdin.readline()
    if told != "go\n":
        return
    os.environ["PATH"] = PATH
    socket.sethostname(spec["name"])
    enter(build_root(folder, spec))
    join_network(spec)
    serve()
    if not spec["kept"]:
        threading.Thread(target=end_with_input, daemon=True).start()
    print("up", flush=True)
    while True:  # whatever lost its parent ends up here
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
