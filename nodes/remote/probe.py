"""Runs on a node and prints what is there as one JSON object: stdlib only, Python 3.8 or newer.

    python3 - [ROOT] < probe.py

Every fact is observed on its own: one that cannot be leaves its key out and its reason under ``errors``.
Nothing is changed on the node. The ``parse_…`` functions are pure and are imported by the tests.
"""

from __future__ import annotations

import csv
import ctypes
import io
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
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterable  # noqa: UP035 - the newer places are not in Python 3.8

Fact = Dict[str, Any]  # noqa: UP006 - evaluated, and Python 3.8 has no dict[…]

TIMEOUT = 10.0  # seconds for a sub-command; nvidia-smi needs some when no driver is kept loaded
PACKAGES = ("vllm", "ray", "torch", "transformers")
OLDEST, NEWEST = (3, 11), (3, 14)  # the Pythons that vLLM has wheels for

GPU_FIELDS = (
    "index", "name", "uuid", "memory.total", "memory.used", "driver_version", "compute_cap",
    "mig.mode.current", "ecc.errors.uncorrected.volatile.total",
)  # fmt: skip
PROCESS_FIELDS = ("pid", "gpu_uuid", "used_memory")

VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x19e5": "ascend"}
# PCI base classes "display controller" and "processing accelerator".
ACCELERATOR_CLASSES = ("0x03", "0x12")

LEFTOVER = re.compile(
    r"(?:^|/)(?:gcs_server|raylet)(?:\s|$)|^ray::|^VLLM::|\bray start\b|\bvllm serve\b|\bvllm\.entrypoints\b"
)
SECRET_ARGUMENT = re.compile(r"((?:key|token|password|secret)[\w-]*[= ])\S+", re.IGNORECASE)


# --- pure readings of what commands and files say


def parse_table(text: str) -> list[dict[str, str]]:
    """Rows of nvidia-smi's ``--format=csv`` by column name, units or not; "" for what it does not know."""
    rows = list(csv.reader(io.StringIO(text), skipinitialspace=True))
    if not rows:
        return []
    names = [name.split(" [")[0].strip() for name in rows[0]]
    return [dict(zip(names, map(_plain, row))) for row in rows[1:] if len(row) == len(names)]  # noqa: B905 - 3.10


def _plain(value: str) -> str:
    value = value.strip()
    if value.startswith("[") or value == "N/A":
        return ""
    return re.sub(r" (MiB|%|W|MHz)$", "", value)


def _number(text: str) -> int:
    return int(float(text)) if text else 0


def parse_gpus(text: str) -> list[Fact]:
    """GPUs from ``nvidia-smi --query-gpu=… --format=csv``, whichever columns were asked. Memory in MiB."""
    return [
        {
            "index": _number(row.get("index", "")),
            "name": row.get("name", ""),
            "uuid": row.get("uuid", ""),
            "memory_total_mib": _number(row.get("memory.total", "")),
            "memory_used_mib": _number(row.get("memory.used", "")),
            "driver": row.get("driver_version", ""),
            "compute_capability": row.get("compute_cap", ""),
            "mig": row.get("mig.mode.current", "") == "Enabled",
            "ecc_errors": _number(row.get("ecc.errors.uncorrected.volatile.total", "")),
        }
        for row in parse_table(text)
    ]


def parse_gpu_processes(text: str) -> list[Fact]:
    """Who holds GPU memory, from ``nvidia-smi --query-compute-apps=… --format=csv``; memory in MiB."""
    return [
        {
            "pid": _number(row.get("pid", "")),
            "gpu_uuid": row.get("gpu_uuid", ""),
            "used_mib": _number(row.get("used_gpu_memory", row.get("used_memory", ""))),
        }
        for row in parse_table(text)
    ]


def parse_gpu_links(text: str) -> list[str]:
    """How the GPUs reach each other, from ``nvidia-smi topo -m``: the distinct links, as "NV18" or "SYS"."""
    rows = [line.split() for line in text.splitlines() if re.match(r"GPU\d+\s", line)]
    cells = (cell for row in rows for cell in row[1 : len(rows) + 1])
    return sorted({cell for cell in cells if re.match(r"(NV\d+|PIX|PXB|PHB|NODE|SYS)$", cell)})


def parse_os_release(text: str) -> str:
    match = re.search(r'^PRETTY_NAME="?(.*?)"?$', text, re.MULTILINE)
    return match.group(1) if match else ""


def parse_cpuinfo(text: str) -> Fact:
    """Model and the vector extensions that CPU inference needs."""
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    words = flags.group(1).split() if flags else []
    return {
        "cpu_model": model.group(1) if model else "",
        "cpu_flags": sorted({word for word in words if word.startswith(("avx2", "avx512", "amx"))}),
    }


def parse_meminfo(text: str) -> dict[str, int]:
    """The sizes of /proc/meminfo in bytes."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def parse_listening(text: str) -> list[int]:
    """Listening ports of /proc/net/tcp or tcp6."""
    rows = (line.split() for line in text.splitlines()[1:])
    listen = "0A"
    return sorted({int(row[1].rsplit(":", 1)[1], 16) for row in rows if len(row) > 3 and row[3] == listen})


def parse_default_interface(text: str) -> str:
    """The interface of the IPv4 default route in /proc/net/route."""
    rows = (line.split() for line in text.splitlines()[1:])
    return next((row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"), "")


def parse_packages(names: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that matter, from the names of dist-info directories."""
    pairs = (name[: -len(".dist-info")].split("-", 1) for name in names if name.endswith(".dist-info"))
    return {pair[0]: pair[1] for pair in sorted(pairs) if len(pair) == 2 and pair[0] in PACKAGES}


def choose_python(candidates: Iterable[Fact]) -> Fact:
    """The best interpreter: one that vLLM supports, then one that makes environments, then the first found.

    The first is the one that ``python3`` means on the node: what its owner chose beats what is merely newer.
    """

    def rank(candidate: Fact) -> tuple[bool, bool]:
        version = tuple(int(part) for part in candidate["python"].split("."))
        return OLDEST <= version[:2] <= NEWEST, candidate["python_has_venv"]

    return max(candidates, key=rank, default={})


def shown_command(command: str) -> str:
    """A command line as people may see it: values of keys and tokens masked, at most 200 characters."""
    return SECRET_ARGUMENT.sub(r"\1•••", command)[:200]


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
    """Interpreters in the usual places, each file once, the first name it was found under."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += [Path("/usr/local/bin"), Path("/usr/bin"), Path.home() / ".local/bin"]
    places = [
        (Path.home(), ".local/share/uv/python/*/bin"), (Path.home(), ".pyenv/versions/*/bin"),
        (Path.home(), "*conda3/bin"), (Path("/opt"), "*/bin"), (Path("/data"), "*conda3/bin"),
    ]  # fmt: skip
    folders += [folder for start, pattern in places for folder in sorted(start.glob(pattern))]
    found = (path for folder in folders for path in sorted(folder.glob("python3*")))
    named = (path for path in found if re.match(r"python3(\.\d+)?$", path.name) and os.access(path, os.X_OK))
    return list({str(path.resolve()): path for path in reversed(list(named))}.values())[::-1][:16]


def pythons(root: Path) -> Fact:
    with ThreadPoolExecutor(4) as pool:
        return choose_python([fact for fact in pool.map(interpreter, python_candidates()) if fact])


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
    """Makers of the accelerators on the PCI bus or in /dev, whether or not a driver is installed."""
    found = set()
    for device in Path("/sys/bus/pci/devices").glob("*"):
        if read_or_empty(device / "class").startswith(ACCELERATOR_CLASSES):
            found.add(VENDORS.get(read_or_empty(device / "vendor").strip(), ""))
    found |= {"amd"} if Path("/dev/kfd").exists() else set()
    found |= {"ascend"} if any(Path("/dev").glob("davinci[0-9]*")) else set()
    return {"accelerators": sorted(found - {""})}


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
    links = parse_gpu_links(ask("nvidia-smi", "topo", "-m")[1]) if len(found) > 1 else []
    return {"gpus": found, "gpu_error": "", "gpu_links": links}


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
    ours = f" {root.resolve()}/env/" in read_or_empty(folder / "maps")
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
    return {
        "environment": {
            "path": str(path),
            "python": interpreter(path / "bin/python").get("python", ""),
            "packages": parse_packages(path.name for path in sites[-1].iterdir()) if sites else {},
            "lock": read_or_empty(path / "quarterdeck.lock").strip(),
        }
    }


def models(root: Path) -> Fact:
    """Complete model directories: a copy that is still under way has the suffix ``.partial``."""
    found = (path.parent.name for path in (root / "models").glob("*/config.json"))
    return {"models": sorted(name for name in found if not name.endswith(".partial"))}


# Those that wait for a program come first: the others are done meanwhile.
OBSERVERS: tuple[Callable[[Path], Fact], ...] = (
    gpus, gpu_processes, resolution, pythons, environment, system, processors, memory, shared_memory, disk,
    network, accelerators, leftovers, models,
)  # fmt: skip


def observe(root: Path) -> Fact:
    """All facts of this machine; ``root`` is Quarterdeck's directory on it."""

    def guarded(observer: Callable[[Path], Fact]) -> Fact:
        try:
            return observer(root)
        except Exception as error:  # noqa: BLE001 - one fact that cannot be observed must not hide the others
            return {"errors": {observer.__name__: f"{type(error).__name__}: {error}"}}

    facts: Fact = {"errors": {}}
    with ThreadPoolExecutor(6) as pool:
        for part in pool.map(guarded, OBSERVERS):
            facts["errors"].update(part.pop("errors", {}))
            facts.update(part)
    return facts


def main() -> None:
    given = sys.argv[1] if len(sys.argv) > 1 else "~/.quarterdeck"
    print(json.dumps(observe(Path(given).expanduser().absolute())))


if __name__ == "__main__":
    main()
