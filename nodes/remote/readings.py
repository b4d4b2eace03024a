"""What commands and files on a node say, read by pure functions: stdlib only, Python 3.8 or newer.

Goes to the node in front of `nodes.remote.probe`, as one program (`nodes.facts.PROBE`). Each ``parse_…`` gives its
default for what says nothing.
"""

from __future__ import annotations

import configparser
import csv
import hashlib
import io
import re
from typing import Any, Dict, Iterable  # noqa: UP035 - the newer places are not in Python 3.8

Fact = Dict[str, Any]  # noqa: UP006 - evaluated, and Python 3.8 has no dict[…]

PACKAGES = ("vllm", "ray", "torch", "transformers")
OLDEST, NEWEST = (3, 11), (3, 14)  # the Pythons that vLLM has wheels for
SECRET_ARGUMENT = re.compile(r"((?:key|token|password|secret)[\w-]*[= ])\S+", re.IGNORECASE)

VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x19e5": "ascend"}
# PCI base classes "display controller" and "processing accelerator".
ACCELERATOR_CLASSES = ("0x03", "0x12")
#: What the accelerators that are not supported yet are called.
DEVICES = {
    ("0x1002", "0x738c"): "AMD Instinct MI100", ("0x1002", "0x7408"): "AMD Instinct MI250X",
    ("0x1002", "0x740c"): "AMD Instinct MI250X", ("0x1002", "0x740f"): "AMD Instinct MI210",
    ("0x1002", "0x74a0"): "AMD Instinct MI300A", ("0x1002", "0x74a1"): "AMD Instinct MI300X",
    ("0x1002", "0x74a5"): "AMD Instinct MI325X", ("0x1002", "0x75a0"): "AMD Instinct MI350X",
    ("0x19e5", "0xd100"): "Huawei Ascend 310", ("0x19e5", "0xd500"): "Huawei Ascend 310P",
    ("0x19e5", "0xd801"): "Huawei Ascend 910", ("0x19e5", "0xd802"): "Huawei Ascend 910B",
}  # fmt: skip


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
            "memory_free_mib": _number(row.get("memory.free", "")),
            "bus": short_bus(row.get("pci.bus_id", "")),
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


def parse_gpu_pairs(text: str) -> list[list[Any]]:
    """Each pair of GPUs once, with its link, from ``nvidia-smi topo -m``: [0, 1, "NV18"]."""
    rows = [line.split() for line in text.splitlines() if re.match(r"GPU\d+\s", line)]
    return [[one, other, rows[one][other + 1]] for one in range(len(rows)) for other in range(one + 1, len(rows))
            if len(rows[one]) > other + 1]  # fmt: skip


def parse_mig(text: str) -> list[Fact]:
    """The instances that GPUs are split into, from ``nvidia-smi -L``: "MIG 3g.20gb  Device  0: (UUID: MIG-…)"."""
    found, gpu = [], -1
    for line in text.splitlines():
        whole = re.match(r"GPU (\d+):", line)
        gpu = int(whole.group(1)) if whole else gpu
        part = re.match(r"\s+MIG (\S+)\s+Device\s+\d+:\s+\(UUID: (\S+)\)", line)
        if part and gpu >= 0:
            size = re.search(r"\.(\d+)gb", part.group(1))
            found.append({"gpu": gpu, "profile": part.group(1), "uuid": part.group(2),
                          "gigabytes": int(size.group(1)) if size else 0})  # fmt: skip
    return found


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


def parse_cuda_version(text: str) -> str:
    """The newest CUDA that the driver can run, from what `nvidia-smi` prints; empty where it does not say."""
    match = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+\.\d+)", text)
    return match.group(1) if match else ""


def parse_xids(text: str) -> list[Fact]:
    """Errors that the NVIDIA driver reported to the kernel's log, with how often each was: one a GPU and number."""
    found: Dict[tuple[str, int], int] = {}  # noqa: UP006
    for bus, number in re.findall(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)", text):
        key = (short_bus(bus), int(number))
        found[key] = found.get(key, 0) + 1
    return [{"bus": bus, "xid": xid, "count": count} for (bus, xid), count in sorted(found.items())]


def short_bus(text: str) -> str:
    """A PCI address as nvidia-smi or the kernel write it ("00000000:3B:00.0", "0000:3b:00") as "3b:00"."""
    match = re.search(r"([0-9a-f]{2}:[0-9a-f]{2})(?:\.[0-9a-f])?$", text.strip().lower())
    return match.group(1) if match else ""


def parse_pci(text: str) -> Fact:
    """Makers and names of the accelerators, from lines of "class vendor device" as in /sys/bus/pci/devices."""
    rows = [line.split() for line in text.splitlines()]
    kept = [row for row in rows if len(row) == 3 and row[0].startswith(ACCELERATOR_CLASSES)]
    makers = {VENDORS[vendor] for _, vendor, _ in kept if vendor in VENDORS}
    names = sorted(DEVICES[vendor, device] for _, vendor, device in kept if (vendor, device) in DEVICES)
    return {"accelerators": sorted(makers), "accelerator_names": names}


def parse_mounts(text: str) -> list[tuple[str, str]]:
    """(device, mount point) of the disks in /proc/mounts, each device once: the first place it is mounted at."""
    rows = [line.split() for line in text.splitlines()]
    disks = [(row[0], _unescaped(row[1])) for row in rows if len(row) > 3 and _is_disk(row[0], row[2])]
    return list({device: (device, place) for device, place in reversed(disks)}.values())[::-1]


def _is_disk(device: str, kind: str) -> bool:
    real = device.startswith("/dev/") and not device.startswith(("/dev/loop", "/dev/fuse"))
    return (real and kind not in ("squashfs", "iso9660")) or kind == "zfs"


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)


def parse_blocks(text: str) -> Dict[str, str]:  # noqa: UP006
    """The blocks that Quarterdeck keeps in somebody else's file, by name, without their marks."""
    marked = r"^# >>> quarterdeck (\S+) >>>\n(.*?)^# <<< quarterdeck \1 <<<$"
    return dict(re.findall(marked, text, re.MULTILINE | re.DOTALL))


def parse_pip_config(text: str) -> Fact:
    """Where a pip.conf says that packages come from."""
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
    except configparser.Error:
        return {}
    names = ("index-url", "find-links", "no-index")
    found = {name: parser.get(part, name) for part in ("global", "install")
             for name in names if parser.has_option(part, name)}  # fmt: skip
    return {name: value.strip() for name, value in found.items() if value.strip()}


def parse_distributions(names: Iterable[str]) -> list[str]:
    """Every package of an environment but pip, as "name==version", from the names of its dist-info directories."""
    pairs = (name[: -len(".dist-info")].split("-", 1) for name in names if name.endswith(".dist-info"))
    named = [(re.sub("[-_.]+", "-", pair[0]).lower(), pair[1]) for pair in pairs if len(pair) == 2]
    # pip is only what the others were installed with.
    return sorted(f"{name}=={version}" for name, version in named if name != "pip")


def set_fingerprint(python: str, distributions: Iterable[str]) -> str:
    """A short name of a Python with a set of packages: two environments with the same one are the same."""
    text = "\n".join([python, *sorted(distributions)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


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
