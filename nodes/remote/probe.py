"""Runs on a node and prints what is there as one JSON object: stdlib only, Python 3.8 or newer.

    python3 -c PROBE ROOT [-]      (PROBE: nodes.facts; "-": options follow as JSON on standard input)

Every fact is observed on its own: one that cannot be leaves its key out and its reason under ``errors``.
Nothing is changed on the node. What is observed is read by the pure functions of `nodes.remote.readings`.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict, Iterable  # noqa: UP035 - the newer places are not in Python 3.8

from nodes.remote.readings import (
    Fact,
    choose_python,
    parse_blocks,
    parse_cpuinfo,
    parse_cuda_version,
    parse_default_interface,
    parse_distributions,
    parse_gpu_pairs,
    parse_gpu_processes,
    parse_gpus,
    parse_listening,
    parse_meminfo,
    parse_mig,
    parse_mounts,
    parse_os_release,
    parse_packages,
    parse_pci,
    parse_pip_config,
    parse_xids,
    set_fingerprint,
    shown_command,
)

TIMEOUT = 10.0  # seconds for a sub-command; nvidia-smi needs some when no driver is kept loaded
INDEX_SECONDS = 3.0

GPU_FIELDS = (
    "index", "name", "uuid", "memory.total", "memory.used", "memory.free", "driver_version", "compute_cap",
    "mig.mode.current", "ecc.errors.uncorrected.volatile.total", "pci.bus_id",
)  # fmt: skip
PROCESS_FIELDS = ("pid", "gpu_uuid", "used_memory")
PIP_PLACES = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
TOOLS = ("cc", "git", "curl", "rsync", "sudo", "pdsh")

LEFTOVER = re.compile(
    r"(?:^|/)(?:gcs_server|raylet)(?:\s|$)|^ray::|^VLLM::|\bray start\b|\bvllm serve\b|\bvllm\.entrypoints\b"
)

OPTIONS: Dict[str, str] = {}  # noqa: UP006 - what was asked on standard input


# --- observing


def read(path: str | Path) -> str:
    return Path(path).read_text(errors="replace")


def read_or_empty(path: str | Path) -> str:
    try:
        return read(path)
    except OSError:
        return ""


def ask(*argv: str, timeout: float = TIMEOUT) -> tuple[int, str, str]:
    """Status, output and errors of a program. Raises OSError when it is missing or takes too long."""
    program = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", env={**os.environ, "LC_ALL": "C"}, start_new_session=True,
    )  # fmt: skip
    try:
        output, error = program.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        # Not waited for without end: a program stuck in the GPU driver cannot even be killed.
        with suppress(subprocess.TimeoutExpired):
            program.communicate(timeout=1)
        raise TimeoutError(f"{argv[0]} gave no answer within {timeout:g} s") from None
    return program.returncode, output, error


def system(root: Path) -> Fact:
    user = pwd.getpwuid(os.geteuid())
    return {
        "home": str(Path.home()),
        "user": user.pw_name,
        "uid": user.pw_uid,
        "hostname": socket.gethostname(),
        "os": parse_os_release(read_or_empty("/etc/os-release")),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "glibc": platform.libc_ver()[1],
        "boot_id": read_or_empty("/proc/sys/kernel/random/boot_id").strip(),
        "clock": time.time(),
    }


def processors(root: Path) -> Fact:
    return {"cpus": len(os.sched_getaffinity(0)), **parse_cpuinfo(read("/proc/cpuinfo"))}


def memory(root: Path) -> Fact:
    """Memory of the machine, or of the container when that is less."""
    info = parse_meminfo(read("/proc/meminfo"))
    total, available = info["MemTotal"], info["MemAvailable"]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        text = read_or_empty(limit).strip()
        if text.isdigit() and int(text) < total:
            total = int(text)
            available = min(available, max(0, total - int(read(used))))
    return {"memory_total": total, "memory_available": available}


def shared_memory(root: Path) -> Fact:
    return {"shm_total": shutil.disk_usage("/dev/shm").total}  # noqa: S108 - looked at, not written to


def disk(root: Path) -> Fact:
    there = next(path for path in (root, *root.parents) if path.exists())
    usage = shutil.disk_usage(there)
    return {"disk_free": usage.free, "disk_total": usage.total}


def disks(root: Path) -> Fact:
    """Every disk with its room; network file systems are left out, as one that hangs would hang this too."""
    found = []
    for device, place in parse_mounts(read("/proc/mounts")):
        with suppress(OSError):
            usage = shutil.disk_usage(place)
            found.append({"device": device, "mount": place, "total": usage.total, "free": usage.free})
    return {"disks": found}


def interpreter(path: Path) -> Fact:
    """What an interpreter says of itself, or nothing. The one beneath is named in place of a venv's."""
    code = (
        "import json, os, sys, sysconfig, importlib.util as u; print(json.dumps({"
        "'python': '.'.join(map(str, sys.version_info[:3])),"
        "'python_path': sys.executable if sys.prefix == sys.base_prefix else sys._base_executable,"
        "'python_has_venv': bool(u.find_spec('venv')),"
        "'python_has_headers': os.path.exists(sysconfig.get_path('include') + '/Python.h')}))"
    )
    try:
        fact: Fact = json.loads(ask(str(path), "-I", "-c", code, timeout=3)[1])
    except (OSError, ValueError):
        return {}
    return fact


def python_candidates() -> list[Path]:
    """Interpreters in the usual places, each file once, the first name it was found under; of slow shims, python3."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += [Path("/usr/local/bin"), Path("/usr/bin"), Path.home() / ".local/bin"]
    places = [
        (Path.home(), ".local/share/uv/python/*/bin"), (Path.home(), ".pyenv/versions/*/bin"),
        (Path.home(), "*conda3/bin"), (Path("/opt"), "*/bin"), (Path("/data"), "*conda3/bin"),
    ]  # fmt: skip
    folders += [folder for start, pattern in places for folder in sorted(start.glob(pattern))]
    found = (path for folder in folders for path in sorted(folder.glob("python3*")))
    fit = re.compile(r"/python3$|(?<!/shims)/python3\.\d+$")
    named = (path for path in found if fit.search(str(path)) and os.access(path, os.X_OK))
    return list({str(path.resolve()): path for path in reversed(list(named))}.values())[::-1][:16]


def pythons(root: Path) -> Fact:
    with ThreadPoolExecutor(4) as pool:
        found = [fact for fact in pool.map(interpreter, python_candidates()) if fact]
    names = {"version": "python", "path": "python_path", "has_venv": "python_has_venv"}
    every = {one["python_path"]: {name: one[key] for name, key in names.items()} for one in found}
    return {**choose_python(found), "pythons": list(every.values())}


class _Interface(ctypes.Structure):
    """``struct ifaddrs`` of <ifaddrs.h>, as Linux has it."""


_Interface._fields_ = [
    ("next", ctypes.POINTER(_Interface)), ("name", ctypes.c_char_p), ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]  # fmt: skip


def interface_addresses() -> list[tuple[str, str]]:
    """(interface, address) of what is up, without loopback and link-local ones."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_Interface)()
    if libc.getifaddrs(ctypes.byref(head)) != 0:
        raise OSError(ctypes.get_errno(), "getifaddrs")
    found, entry, up, loopback = [], head, 0x1, 0x8
    while entry:
        item = entry.contents
        if item.address and item.flags & up and not item.flags & loopback:
            found.append((item.name.decode(), _address(item.address)))
        entry = item.next
    libc.freeifaddrs(head)
    return [(name, address) for name, address in found if address and not address.startswith("fe80:")]


def _address(pointer: int) -> str:
    family = ctypes.c_uint16.from_address(pointer).value
    if family == socket.AF_INET:
        return socket.inet_ntop(family, ctypes.string_at(pointer + 4, 4))
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, ctypes.string_at(pointer + 8, 16))
    return ""


def _speed(interface: str) -> int:
    text = read_or_empty(f"/sys/class/net/{interface}/speed").strip()
    return int(text) if text.isdigit() else 0


def network(root: Path) -> Fact:
    """Addresses, those of the default route's interface first, and the ports in use."""
    default = parse_default_interface(read_or_empty("/proc/net/route"))
    found = sorted(interface_addresses(), key=lambda pair: (pair[0] != default, pair[0]))
    ports = parse_listening(read("/proc/net/tcp")) + parse_listening(read_or_empty("/proc/net/tcp6"))
    return {
        "addresses": [address for _, address in found],
        "interfaces": [{"name": name, "address": address, "mbits": _speed(name)} for name, address in found],
        "listening": sorted(set(ports)),
    }


def resolution(root: Path) -> Fact:
    """The address this host's own name resolves to; asked in another process, as a resolver can hang."""
    code = "import socket; print(socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)[0][4][0])"
    return {"hostname_address": ask(sys.executable, "-I", "-c", code, timeout=3)[1].strip()}


def accelerators(root: Path) -> Fact:
    """Makers and names of the accelerators on the PCI bus or in /dev, whether or not a driver is installed."""
    devices = sorted(Path("/sys/bus/pci/devices").glob("*"))
    parts = ("class", "vendor", "device")
    lines = [" ".join(read_or_empty(device / part).strip() for part in parts) for device in devices]
    found = parse_pci("\n".join(lines))
    makers = {"amd"} if Path("/dev/kfd").exists() else set()
    makers |= {"ascend"} if any(Path("/dev").glob("davinci[0-9]*")) else set()
    return {**found, "accelerators": sorted(makers.union(found["accelerators"]))}


def tools(root: Path) -> Fact:
    """Programs that steps need, and what installs more of them."""
    managers = (name for name in ("apt-get", "dnf") if shutil.which(name))
    return {"tools": [name for name in TOOLS if shutil.which(name)], "package_manager": next(managers, "")}


def kept_blocks(root: Path) -> Fact:
    """What Quarterdeck keeps in files that are not its own: file → name → content; and clusters' keys."""
    ssh = Path.home() / ".ssh"
    places = {name: ssh / name for name in ("authorized_keys", "known_hosts", "config")}
    places["hosts"] = Path("/etc/hosts")
    blocks = {name: parse_blocks(read_or_empty(path)) for name, path in places.items()}
    keys = {path.name[len("quarterdeck_") : -len(".pub")]: read_or_empty(path).strip()
            for path in ssh.glob("quarterdeck_*.pub") if path.with_suffix("").exists()}  # fmt: skip
    return {"blocks": {name: found for name, found in blocks.items() if found}, "cluster_keys": keys}


def index(root: Path) -> Fact:
    """Whether the package index answers: asked while the environment is not complete, and pip has no other source."""
    configured = pip_configuration()
    complete = read_or_empty(stamp_of(root)).strip().endswith("verified")
    if "index" not in OPTIONS or complete or "find-links" in configured or "no-index" in configured:
        return {}
    url = OPTIONS["index"] or configured.get("index-url") or OPTIONS.get("default_index", "")
    said: list[str] = []
    asking = threading.Thread(target=lambda: said.append(reach(url)), daemon=True)  # a resolver can hang
    asking.start()
    asking.join(INDEX_SECONDS)
    return {"index": shown_url(url), "index_error": said[0] if said else "no answer"} if url else {}


def pip_configuration() -> Fact:
    """pip's own, the later place winning: /etc, the user's, the environment's variables."""
    found: Fact = {}
    for place in PIP_PLACES:
        found.update(parse_pip_config(read_or_empty(Path(place).expanduser())))
    for name in ("index-url", "find-links", "no-index"):
        value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        found.update({name: value} if value else {})
    return found


def shown_url(url: str) -> str:
    """The address without the user and password that may stand in it."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def reach(url: str) -> str:
    """Why an address does not answer; empty when it does, whatever it answers."""
    if url.startswith("file://"):
        return "" if Path(url[len("file://") :]).is_dir() else "there is no such directory"
    try:
        question = urllib.request.Request(shown_url(url).rstrip("/") + "/pip/", method="HEAD")  # noqa: S310
        urllib.request.urlopen(question, timeout=INDEX_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        return "" if error.code < 500 else f"it answers with status {error.code}"
    except urllib.error.URLError as error:
        return "" if "CERTIFICATE" in str(error.reason) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


def query(what: str, fields: Iterable[str]) -> str:
    """Ask nvidia-smi for a table, leaving out fields that an older one does not know. Raises RuntimeError."""
    asked = list(fields)
    while True:
        status, output, error = ask("nvidia-smi", f"--query-{what}={','.join(asked)}", "--format=csv,nounits")
        unknown = re.search(r'Field "([\w.]+)" is not a valid field', output + error)
        if status == 0:
            return output
        if not unknown or unknown.group(1) not in asked:
            raise RuntimeError(" ".join((output + error).split()) or f"it ended with status {status}")
        asked.remove(unknown.group(1))


def gpus(root: Path) -> Fact:
    if not shutil.which("nvidia-smi"):
        return {"gpus": [], "gpu_error": "nvidia-smi is not installed"}
    try:
        found = parse_gpus(query("gpu", GPU_FIELDS))
    except (OSError, RuntimeError) as error:
        return {"gpus": [], "gpu_error": f"nvidia-smi failed: {error}"}
    topology = ask("nvidia-smi", "topo", "-m")[1] if len(found) > 1 else ""
    split = ask("nvidia-smi", "-L")[1] if any(gpu["mig"] for gpu in found) else ""
    return {"gpus": found, "gpu_error": "",
            "gpu_pairs": parse_gpu_pairs(topology), "mig_instances": parse_mig(split)}  # fmt: skip


def gpu_software(root: Path) -> Fact:
    """The newest CUDA that the driver runs, and the errors that it told the kernel, where the log may be read."""
    if not shutil.which("nvidia-smi"):
        return {}
    cuda = parse_cuda_version(ask("nvidia-smi")[1])
    try:
        return {"cuda": cuda, "gpu_xids": parse_xids(kernel_log()), "gpu_xid_error": ""}
    except (OSError, RuntimeError) as error:
        return {"cuda": cuda, "gpu_xid_error": str(error)}


def kernel_log() -> str:
    """What the kernel said since the start. Raises OSError or RuntimeError where it may not be read."""
    status, log, why = ask("dmesg")
    if status == 0:
        return log
    status, log, error = ask("journalctl", "-k", "-b", "-o", "cat", "--no-pager")
    # It shows nobody's messages to who may not see them, and ends well.
    if status != 0 or "not seeing messages" in error:
        raise RuntimeError(" ".join((why or error).split())[:200] or f"it ended with status {status}")
    return log


def gpu_processes(root: Path) -> Fact:
    if not shutil.which("nvidia-smi"):
        return {}
    found = parse_gpu_processes(query("compute-apps", PROCESS_FIELDS))
    return {"gpu_processes": [{**row, **process(row["pid"], root)} for row in found]}


def process(pid: int, root: Path) -> Fact:
    """User and command of a process, and whether it runs out of Quarterdeck's own environment."""
    folder = Path(f"/proc/{pid}")
    try:
        user, command = _user(folder.stat().st_uid), command_line(folder)
    except OSError:
        return {"user": "", "command": "", "ours": False}
    # vLLM and Ray overwrite their command line and environment; what is mapped tells whose Python it is.
    ours = f" {(root / 'env').resolve()}/" in read_or_empty(folder / "maps")
    return {"user": user, "command": shown_command(command), "ours": ours}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def command_line(folder: Path) -> str:
    words = read(folder / "cmdline").replace("\0", " ").strip()
    return words or read(folder / "comm").strip()


def leftovers(root: Path) -> Fact:
    """Ray and vLLM processes that are running now."""
    lines = {int(folder.name): read_or_empty(folder / "cmdline") for folder in Path("/proc").glob("[0-9]*")}
    found = sorted(pid for pid, line in lines.items() if LEFTOVER.search(line.replace("\0", " ")))
    return {"leftovers": [{"pid": pid, **process(pid, root), **origin(pid)} for pid in found if pid != os.getpid()]}


def origin(pid: int) -> Fact:
    """When a process was started, and the job whose mark it carries, or an ancestor of it does."""
    started, job = stat(pid)[1], ""
    while pid > 1 and not job:
        variables = read_or_empty(Path(f"/proc/{pid}/environ")).split("\0")
        job = next((Path(line[7:]).name for line in variables if line.startswith("QD_JOB=")), "")
        pid = stat(pid)[0]
    return {"job": job, "started": started}


def stat(pid: int) -> tuple[int, int]:
    """Parent and start, in clock ticks, of a process; zeros once it is gone."""
    words = read_or_empty(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (int(words[1]), int(words[19])) if len(words) > 19 else (0, 0)


def environment(root: Path) -> Fact:
    path = root / "env"
    sites = sorted(path.glob("lib/python3*/site-packages"))
    names = [path.name for path in sites[-1].iterdir()] if sites else []
    python, every = interpreter(path / "bin/python").get("python", ""), parse_distributions(names)
    return {
        "environment": {
            "path": os.readlink(path) if path.is_symlink() else str(path),  # noqa: PTH115 - Python 3.9
            "python": python,
            "packages": parse_packages(names),
            "distributions": every,
            "fingerprint": set_fingerprint(python, every) if python and every else "",
            "lock": read_or_empty(stamp_of(root)).strip(),
            "kind": _kind(path) if path.exists() else "",
        }
    }


def _kind(path: Path) -> str:
    return "existing" if path.is_symlink() else "conda" if (path / "conda-meta").is_dir() else "venv"


def stamp_of(root: Path) -> Path:
    """The file that says what was installed to the end; beside an environment that is somebody else's, not in it."""
    return root / "env.lock" if (root / "env").is_symlink() else root / "env/quarterdeck.lock"


def models(root: Path) -> Fact:
    """Complete model directories: a copy that is still under way has the suffix ``.partial``."""
    found = (path.parent.name for path in (root / "models").glob("*/config.json"))
    return {"models": sorted(name for name in found if not name.endswith(".partial"))}


# Those that wait for a program come first: the others are done meanwhile.
OBSERVERS: tuple[Callable[[Path], Fact], ...] = (
    index, gpus, gpu_software, gpu_processes, resolution, pythons, environment, system, processors, memory,
    shared_memory, disk, disks, network, accelerators, tools, kept_blocks, leftovers, models,
)  # fmt: skip


def observe(root: Path) -> Fact:
    """All facts of this machine; ``root`` is Quarterdeck's directory on it."""

    def guarded(observer: Callable[[Path], Fact]) -> Fact:
        try:
            return observer(root)
        except Exception as error:  # noqa: BLE001 - one fact that cannot be observed must not hide the others
            return {"errors": {observer.__name__: f"{type(error).__name__}: {error}"}}

    facts: Fact = {"errors": {}}
    with ThreadPoolExecutor(8) as pool:
        for part in pool.map(guarded, OBSERVERS):
            facts["errors"].update(part.pop("errors", {}))
            facts.update(part)
    return facts


def main() -> None:
    given = sys.argv[1] if len(sys.argv) > 1 else "~/.quarterdeck"
    if "-" in sys.argv[2:]:
        OPTIONS.update(json.loads(sys.stdin.read() or "{}"))
    print(json.dumps(observe(Path(given).expanduser().absolute())))


if __name__ == "__main__":
    main()
