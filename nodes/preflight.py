"""What is wrong with a node before anything starts there, told from its facts. Pure.

Each check looks at one thing and yields what a person must know: what it means and what to do. What could not
be observed is not a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from django.utils.translation import gettext as _

from nodes import gpu_words
from nodes.facts import Facts, Gpu, Process
from nodes.remote.command import command

GIB = 1024**3
MIB = 1024**2

OLDEST_PYTHON = (3, 11)  # of vLLM 0.32
OLDEST_GLIBC = (2, 28)  # of vLLM's wheels (manylinux_2_28)
OLDEST_DRIVER = 580  # that runs CUDA 13, which vLLM's wheels are built with since 0.20
OLDEST_GPU = (7, 5)  # compute capability that CUDA 13 still supports
ENVIRONMENT_BYTES = {"cpu": 8 * GIB, "cuda": 25 * GIB}  # packages, pip's downloads and vLLM's compile cache
LEAST_MEMORY = 4 * GIB
LEAST_SHM = 512 * MIB
MOST_CLOCK_OFFSET = 5.0  # seconds
UNSEEN_MIB = 1024  # GPU memory that no visible program accounts for and that matters


class Severity(StrEnum):
    """``blocks``: preparing or deploying would fail. ``warns``: it works, but not as well as it could."""

    BLOCKS = "blocks"
    WARNS = "warns"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, in the language of the request; ``command`` is for its shell, to copy."""

    severity: Severity
    what: str
    next_step: str
    command: str = ""


Check = Callable[[Facts], Iterator[Finding]]


def findings(facts: Facts) -> list[Finding]:
    """All that is wrong, what blocks first; nothing while there are no facts."""
    if not facts.hostname:
        return []
    found = [finding for check in CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: finding.severity)


def _blocks(what: str, next_step: str, shell: str = "") -> Finding:
    return Finding(Severity.BLOCKS, what, next_step, shell)


def _warns(what: str, next_step: str, shell: str = "") -> Finding:
    return Finding(Severity.WARNS, what, next_step, shell)


def _version(text: str) -> tuple[int, ...]:
    """ "580.159.04" as numbers; nothing where it is not a version."""
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def _install(facts: Facts, *packages: str) -> str:
    """How to install packages of Debian and Ubuntu; nothing on other systems, where they have other names."""
    apt = facts.os.startswith(("Debian", "Ubuntu"))
    return command("sudo", "apt-get", "install", *packages).sh() if apt else ""


def _machine(facts: Facts) -> Iterator[Finding]:
    if facts.machine not in ("x86_64", "aarch64", ""):
        yield _blocks(
            _("There are no vLLM packages for processors of the kind %(machine)s.")
            % {"machine": facts.machine},
            _("Use a server with an x86-64 or 64-bit ARM processor."),
        )
    if () < _version(facts.glibc) < OLDEST_GLIBC:
        yield _blocks(
            _("%(os)s is too old for vLLM: it has glibc %(glibc)s, and 2.28 is needed.")
            % {"os": facts.os, "glibc": facts.glibc},
            _("Upgrade the operating system."),
        )


def _python(facts: Facts) -> Iterator[Finding]:
    if not facts.python:
        yield _blocks(
            _("There is no Python that works on this node."),
            _("Install Python 3.11 or newer."),
            _install(facts, "python3", "python3-venv"),
        )
    elif _version(facts.python) < OLDEST_PYTHON:
        yield _blocks(
            _("The newest Python on this node is %(python)s, and vLLM needs 3.11.")
            % {"python": facts.python},
            _(
                "Install Python 3.11 or newer beside it, for instance with uv, conda or the system's "
                "packages."
            ),
        )
    elif not facts.python_has_venv:
        yield _blocks(
            _("The Python at %(path)s cannot make environments: its module venv is missing.")
            % {"path": facts.python_path},
            _("Install it."),
            _install(facts, "python3-venv"),
        )


def _headers(facts: Facts) -> Iterator[Finding]:
    if facts.gpus and facts.python and not facts.python_has_headers:
        yield _warns(
            _("The header files of Python %(python)s are missing, which vLLM compiles parts of a model with.")
            % {"python": facts.python},
            _("Install them, or run models with enforce-eager."),
            _install(facts, f"python{'.'.join(facts.python.split('.')[:2])}-dev"),
        )


def _compiler(facts: Facts) -> Iterator[Finding]:
    if facts.gpus and facts.package_manager and "cc" not in facts.tools:
        yield _warns(
            _("There is no C compiler, which vLLM compiles parts of a model with."),
            _("Install one, or prepare the node with its base packages."),
            _install(facts, "gcc"),
        )


def _index(facts: Facts) -> Iterator[Finding]:
    if facts.index_error:
        yield _blocks(
            _("The package index %(index)s does not answer from this node: %(error)s.")
            % {"index": facts.index, "error": facts.index_error.rstrip(".")},
            _(
                "Prepare the node with another index or mirror, let it out through a proxy, or prepare it from the "
                "wheelhouse, for which it needs no network."
            ),
        )


def _disk(facts: Facts) -> Iterator[Finding]:
    needed = ENVIRONMENT_BYTES[facts.engine]
    if not facts.environment.lock and facts.disk_total > 0 and facts.disk_free < needed:
        yield _blocks(
            _(
                "%(free).1f GiB of disk are free for Quarterdeck's directory, and vLLM with its packages "
                "needs %(needed)d."
            )
            % {"free": facts.disk_free / GIB, "needed": needed // GIB},
            _("Free space, or register the node again with a directory on a bigger disk."),
            command("df", "-h").sh(),
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    if 0 < facts.memory_total < LEAST_MEMORY:
        yield _warns(
            _(
                "This node has %(total).1f GiB of memory: vLLM itself needs about 2, so little is left "
                "for a model."
            )
            % {"total": facts.memory_total / GIB},
            _("Use it for small models only, or give it 4 GiB or more."),
        )


def _shared_memory(facts: Facts) -> Iterator[Finding]:
    if 0 < facts.shm_total < LEAST_SHM:
        finding = _blocks if len(facts.gpus) > 1 else _warns
        yield finding(
            _("Shared memory (/dev/shm) has %(total)d MiB. Ray and GPUs exchange data there and need 512.")
            % {"total": facts.shm_total // MIB},
            _("Make it bigger. In a container, start that with --shm-size=8g or --ipc=host."),
            command("sudo", "mount", "-o", "remount,size=8G", "/dev/shm").sh(),  # noqa: S108 - a mount point
        )


def _processor(facts: Facts) -> Iterator[Finding]:
    if (
        facts.engine == "cpu"
        and facts.machine == "x86_64"
        and facts.cpu_model
        and "avx2" not in facts.cpu_flags
    ):
        yield _blocks(
            _("The processor (%(model)s) has no AVX2, without which vLLM cannot compute on it.")
            % {"model": facts.cpu_model},
            _("Use a newer processor or a GPU. In a virtual machine, pass the host's processor through."),
        )


def _driver(facts: Facts) -> Iterator[Finding]:
    versions = {gpu.driver for gpu in facts.gpus if () < _version(gpu.driver) < (OLDEST_DRIVER,)}
    for driver in sorted(versions):
        yield _blocks(
            _("The NVIDIA driver is %(driver)s. The CUDA 13 that vLLM is built with needs 580 or newer.")
            % {"driver": driver},
            _("Install a newer driver and restart the server."),
            _install(facts, f"nvidia-driver-{OLDEST_DRIVER}-server") if facts.os.startswith("Ubuntu") else "",
        )


def _gpu(facts: Facts) -> Iterator[Finding]:
    for gpu in facts.gpus:
        if () < _version(gpu.compute_capability) < OLDEST_GPU:
            yield _blocks(
                _(
                    "GPU %(index)d, %(name)s, is too old: it has compute capability %(has)s, and CUDA 13 "
                    "needs 7.5."
                )
                % {"index": gpu.index, "name": gpu.name, "has": gpu.compute_capability},
                _("Use a newer GPU."),
            )
        if gpu.mig:
            has = gpu_words.instances(facts, gpu.index) or _("none is made yet")
            yield _warns(
                _("GPU %(index)d, %(name)s, is split into instances (MIG), which is not supported yet: %(has)s.")
                % {"index": gpu.index, "name": gpu.name, "has": has},
                _("Switch MIG off to use the whole GPU."),
                command("sudo", "nvidia-smi", "-i", str(gpu.index), "-mig", "0").sh(),
            )
        if gpu.ecc_errors:
            yield _warns(
                _("GPU %(index)d, %(name)s, has had %(errors)d memory errors that could not be corrected.")
                % {"index": gpu.index, "name": gpu.name, "errors": gpu.ecc_errors},
                _("Restart the server. If they come back, have the GPU replaced."),
                command("nvidia-smi", "-q", "-d", "ECC", "-i", str(gpu.index)).sh(),
            )


#: What the driver's numbers mean, for those that say something of the hardware: NVIDIA's list of Xid errors.
_BROKEN = frozenset({48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120, 121, 122, 123, 140, 143, 149, 154})


def _xid(facts: Facts) -> Iterator[Finding]:
    by_bus = {gpu.bus: gpu for gpu in facts.gpus if gpu.bus}
    for error in facts.gpu_xids:
        gpu = by_bus.get(error.bus)
        names = {
            "gpu": f"GPU {gpu.index}" if gpu else f"GPU {error.bus}",
            "xid": error.xid,
            "count": error.count,
            "meaning": _xid_meaning(error.xid),
        }
        yield _warns(
            _("%(gpu)s has reported the error Xid %(xid)d, %(count)d times since the start: %(meaning)s.") % names,
            _("Restart the server. If it comes back, have the GPU looked at.")
            if error.xid in _BROKEN
            else _("Mostly a program's own fault. If another program has it too, look at the GPU and its driver."),
            command("sudo", "dmesg").sh(),
        )


def _xid_meaning(xid: int) -> str:
    known = {
        13: _("a program computed out of bounds"),
        31: _("a program used memory that was not its own"),
        43: _("a program's work was stopped"),
        48: _("memory failed and could not be corrected"),
        63: _("a row of its memory was replaced"),
        64: _("a row of its memory could not be replaced"),
        74: _("the NVLink connection failed"),
        79: _("it fell off the bus"),
        94: _("memory failed, and one program was hit"),
        95: _("memory failed, and all programs were hit"),
        119: _("its own processor does not answer"),
    }
    return known.get(xid, _("see NVIDIA's list of Xid errors"))


def _silent_gpu(facts: Facts) -> Iterator[Finding]:
    if "nvidia" in facts.accelerators and not facts.gpus:
        yield _blocks(
            _("There is an NVIDIA GPU in this node, but it cannot be used: %(error)s.")
            % {"error": facts.gpu_error.rstrip(".") or _("nvidia-smi lists none")},
            _("Install the NVIDIA driver, 580 or newer, so that nvidia-smi works for the login user."),
            command("nvidia-smi").sh(),
        )


def _held_memory(facts: Facts) -> Iterator[Finding]:
    gpus = {gpu.uuid: gpu for gpu in facts.gpus}
    for process in facts.gpu_processes:
        if not process.ours and process.gpu_uuid in gpus:
            yield _held_by(process, gpus[process.gpu_uuid])
    seen = {process.gpu_uuid for process in facts.gpu_processes}
    for gpu in facts.gpus:
        if gpu.memory_used_mib >= UNSEEN_MIB and gpu.uuid not in seen:
            yield _warns(
                _("%(used)d MiB of GPU %(index)d are in use by a program that cannot be seen from here.")
                % {"used": gpu.memory_used_mib, "index": gpu.index},
                _(
                    "Look for containers and other virtual machines that use this GPU. Plans leave that "
                    "memory to them."
                ),
            )


def _held_by(process: Process, gpu: Gpu) -> Finding:
    return _warns(
        _("Process %(pid)d of %(user)s holds %(used)d MiB of GPU %(index)d: %(command)s")
        % {
            "pid": process.pid,
            "user": process.user or _("an unknown user"),
            "used": process.used_mib,
            "index": gpu.index,
            "command": process.command or _("its command cannot be seen"),
        },
        _("Plans leave that memory to it. To use the whole GPU, ask its owner to stop it."),
        command("ps", "-fp", str(process.pid)).sh(),
    )


def _leftovers(facts: Facts) -> Iterator[Finding]:
    foreign = [process for process in facts.leftovers if not process.ours]
    if foreign:
        yield _warns(
            _(
                "Ray or vLLM runs here already, and Quarterdeck did not start it: process %(pids)s of "
                "%(users)s."
            )
            % {
                "pids": ", ".join(str(process.pid) for process in foreign[:5]),
                "users": ", ".join(sorted({process.user or "?" for process in foreign})),
            },
            _("If nobody needs it, stop it: it may hold ports, memory and GPUs."),
            command("ps", "-fp", ",".join(str(process.pid) for process in foreign)).sh(),
        )


def _hostname(facts: Facts) -> Iterator[Finding]:
    names = {"name": facts.hostname, "address": facts.hostname_address}
    if facts.hostname_address.startswith("127."):
        what = _(
            "The node's own name, %(name)s, resolves to %(address)s. Workers on other nodes would be "
            "sent there."
        )
    elif not facts.hostname_address and "resolution" not in facts.errors:
        what = _("The node's own name, %(name)s, does not resolve to any address.")
    else:
        return
    next_step = _(
        "This matters once the node shares a cluster with others. Then give the name the node's own address: "
        "a line like this, above the others in /etc/hosts."
    )
    own = _own_address(facts)
    yield _warns(what % names, next_step, command(own, facts.hostname).sh() if own else "")


def _own_address(facts: Facts) -> str:
    """One that other nodes may know it by, IPv4 where it has both; empty where none was seen."""
    own = [one.address for one in facts.interfaces if not one.address.startswith("127.")]
    return min(own, key=lambda address: ":" in address, default="")


def _clock(facts: Facts) -> Iterator[Finding]:
    offset = facts.clock_offset
    if abs(offset) > MOST_CLOCK_OFFSET:
        what = (
            _("The clock is %(seconds)d s ahead.") if offset > 0 else _("The clock is %(seconds)d s behind.")
        )
        yield _warns(
            what % {"seconds": round(abs(offset))},
            _("Switch on time synchronisation: tokens and certificates are refused when the clock is wrong."),
            command("sudo", "timedatectl", "set-ntp", "true").sh(),
        )


def _other_makers(facts: Facts) -> Iterator[Finding]:
    makers = {"amd": "AMD", "ascend": "Huawei Ascend"}
    for maker in facts.accelerators:
        # Beside NVIDIA GPUs it is only what drives the screen.
        if maker in makers and not facts.gpus:
            yield _warns(
                _("This node has an accelerator by %(maker)s, which Quarterdeck does not support yet.")
                % {"maker": ", ".join(_named(facts, makers[maker])) or makers[maker]},
                _("The node can be used with its processor only."),
            )


def _named(facts: Facts, maker: str) -> list[str]:
    """The models of a maker, each once, with their number: "2 × AMD Instinct MI300X"."""
    names = [name for name in facts.accelerator_names if name.startswith(maker)]
    return [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]


CHECKS: tuple[Check, ...] = (
    _machine,
    _python,
    _index,
    _disk,
    _memory,
    _shared_memory,
    _processor,
    _silent_gpu,
    _driver,
    _gpu,
    _xid,
    _headers,
    _compiler,
    _held_memory,
    _leftovers,
    _hostname,
    _clock,
    _other_makers,
)
