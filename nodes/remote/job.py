"""Jobs: a command started detached on a host, that outlives SSH and Quarterdeck.

A job's directory on the host has everything about it::

    run      the command, as a script            log    what it prints
    pid      "<pid> <start ticks> <boot id>"      exit   its exit status, once it has ended
    started  a directory, made by the one runner there ever is
    log.kept the first byte of the log that was not let go of, once it has grown too long

Starting is idempotent: however often it is said, `mkdir started` succeeds once. So whoever finds a job that may not
have been started simply starts it again.
"""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Literal, NamedTuple

from nodes.remote.command import Command, python, quote, script
from nodes.remote.host import Host, ask

# What arrives is moved into place whole: the job may have been started by somebody else meanwhile, and reads its files.
_LAUNCH = """
umask 077
mkdir -p "$1"
cd "$1"
if [ -e started ]; then exec cat >/dev/null; fi
new=new.$$
trap 'rm -rf "$new"' EXIT
mkdir "$new"
said=$(tar -xf - -C "$new" 2>&1) || { echo "$said" | head -n 1 >&2; exit 1; }
mv -f "$new"/* .
setsid sh ./runner "$1" </dev/null >/dev/null 2>&1 &
"""

_RUNNER = b"""\
# Made by Quarterdeck. Runs ./run once, keeps its output, pid and exit status.
cd "$1" && mkdir started 2>/dev/null || exit 0
umask 077
export QD_JOB="$1" PYTHONUNBUFFERED=1
read -r _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ ticks _ < /proc/$$/stat
read -r boot < /proc/sys/kernel/random/boot_id
echo "   " > exit.new  # so that there is room for the status even when the disk is full by then
echo "$$ $ticks $boot" > pid.new && mv pid.new pid
sh ./run > log 2>&1 </dev/null
printf '%3d' $? 1<> exit.new && mv exit.new exit
"""

# The observer lets go of the beginning of a log that has grown too long; `log.kept` says where the rest begins. tail
# counts from 1; head closes early, which would make tail's status 141 without the true.
_READ = """
at=$2
if read -r kept 2>/dev/null <"$1/log.kept" && [ "$kept" -gt "$at" ]; then at=$kept; fi
echo "$at"
{ tail -c "+$((at + 1))" "$1/log" || true; } | head -c "$3"
"""
_SIGNAL = files("nodes.remote").joinpath("signal_job.py").read_text()
_STAGES = {"TERM": "15", "KILL": "9"}


def directory(root: str, job_id: object) -> str:
    """The job's directory under the node's root."""
    return f"{root}/jobs/{job_id}"


def run_script(command: Command) -> bytes:
    """The command as the script a job runs: environment first, so that no secret stands in an argument list."""
    lines = [f"export {word}" for word in _exports(command.env)]
    if command.cwd:
        lines.append(f"cd {quote(command.cwd)}")
    lines.append("exec " + " ".join(quote(word) for word in command.argv))
    return ("\n".join(lines) + "\n").encode()


def _exports(env: Mapping[str, str]) -> list[str]:
    # Command checks the names when it renders itself; here only the values need quoting.
    Command(("true",), env=env).sh()
    return [f"{name}={quote(value)}" for name, value in env.items()]


def start(host: Host, place: str, command: Command) -> None:
    """Start the command as the job that lives in directory ``place``; again and again is the same as once."""
    content = {"run": run_script(command), "runner": _RUNNER, **command.files}
    ask(host, script(_LAUNCH, place), stdin=_tar(content))


def signal(host: Host, place: str, how: Literal["TERM", "KILL"]) -> int:
    """Signal every process of the job; returns how many there were."""
    answer = ask(host, python("python3", _SIGNAL, place, _STAGES[how]))
    return int(answer.text.strip() or 0)


class Piece(NamedTuple):
    """Bytes of a log file, and the offset of the first."""

    start: int
    data: bytes


def read_log(host: Host, place: str, start_at: int, size: int) -> Piece:
    """At most ``size`` bytes of the job's log from byte ``start_at`` on, or from the first that is still kept."""
    start, _newline, data = ask(host, script(_READ, place, str(start_at), str(size))).stdout.partition(b"\n")
    return Piece(int(start), data)


def remove(places: Sequence[str]) -> Command:
    """Remove the directories of jobs that are over."""
    return script('rm -rf -- "$@"', *places)


def _tar(content: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def shown(command: Command) -> str:
    """The command for people: one option a line where it is long, secrets masked."""
    line = command.masked()
    words = shlex.split(line)
    return line if len(line) < 110 or "\n" in line else " \\\n    ".join(shlex.quote(word) for word in words)
