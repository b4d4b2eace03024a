"""From a log to the one failure that explains it. Pure.

The last lines of a failed start say nothing ("Engine core initialization failed. See root cause above").
What counts is the first real error, a worker's before the engine's before the server's: so errors travel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from django.utils.translation import gettext as _

from deployments.diagnosis import cluster, configuration, machine, memory
from deployments.diagnosis.lines import Line, parse, plain
from deployments.diagnosis.signature import Kind, Signature
from deployments.diagnosis.unknown import KILLED, UNKNOWN

SIGNATURES = (*configuration.SIGNATURES, *memory.SIGNATURES, *cluster.SIGNATURES, *machine.SIGNATURES)
BY_ID = {signature.id: signature for signature in (*SIGNATURES, UNKNOWN, KILLED)}

HALF = 4 * 1024 * 1024  # characters that are read of each end of a log; starts fail early, servers die late
MOST = 200  # places where one text is looked at: a log can repeat an error a million times
EVIDENCE = 500  # characters
STARTED = "Application startup complete"
STOPPING = "[shutdown] API server: shutdown triggered"  # what breaks after it was meant to end

EXCEPTION = re.compile(r"(?:Error|Exception): ")
EXCEPTION_LINE = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception): (?P<error>.+)")
VALUE_ERROR = re.compile(r"  Value error, (?P<error>.+?)(?: \[type=.*)?$")
#: By rank: the address of a worker's host, and its process there.
Workers = Mapping[str, Sequence[Any]]
NOBODY: Workers = MappingProxyType({})
RAY_TASK = re.compile(r"ray::\S+ \(pid=\d+, ip=([\d.a-fA-F:]+)")


@dataclass(frozen=True)
class Diagnosis:
    """What went wrong, as a value: keep `as_dict` and read it again with `from_dict` in any language.

    ``host`` is the address of the host that said it, "" for the one that runs the server; ``evidence`` what.
    """

    id: str
    host: str = ""
    process: str = ""
    evidence: str = ""
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def severity(self) -> str:
        """``fails``, or ``stalls``: nothing failed, nothing goes on; to be believed after a quiet minute."""
        return "stalls" if BY_ID[self.id].kind is Kind.STALL else "fails"

    @property
    def cause(self) -> str:
        return str(BY_ID[self.id].cause) % self._shown()

    @property
    def fix(self) -> str:
        return str(BY_ID[self.id].fix) % self._shown()

    @property
    def options(self) -> dict[str, str]:
        """vLLM's options, by name, that would mend it."""
        return {name: value % self._shown() for name, value in BY_ID[self.id].options.items()}

    def as_dict(self) -> dict[str, Any]:
        kept = {"id": self.id, "host": self.host, "process": self.process, "evidence": self.evidence}
        return {**kept, "values": dict(self.values)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises KeyError for a failure that is not known (any more)."""
        return cls(**{**data, "id": BY_ID[data["id"]].id})

    def _shown(self) -> dict[str, str]:
        return {**self.values, "host": self.host or _("the host that runs the server")}


class Clue(NamedTuple):
    """A line that speaks for a signature, in the order in which clues are believed."""

    kind: Kind
    distance: int  # of the process from the first cause
    position: int
    signature: Signature
    line: Line
    values: dict[str, str]


def match(log: str, workers: Workers = NOBODY) -> Diagnosis | None:
    """The failure that explains the log, or None when nothing in it failed.

    Once the server has started, only what came after counts; once it was told to stop, only what came before.
    Reads at most 8 MiB, in well under a second. ``workers`` are those of the engine, as `phases` has read them; with
    them it is said which one died.
    """
    text = plain(log if len(log) <= 2 * HALF else f"{log[:HALF]}\n{log[-HALF:]}").partition(STOPPING)[0]
    started = text.rfind(STARTED)
    text = text[max(started, 0) :]
    clues = [clue for signature in SIGNATURES for clue in _known(signature, text)]
    known = {clue.position for clue in clues}
    clues += [clue for clue in _unknown(text, after_start=started >= 0) if clue.position not in known]
    if not clues:
        return None
    first = min(clues, key=lambda clue: clue[:3])
    return _killed(first, workers) or Diagnosis(
        first.signature.id,
        host=first.values.get("host") or first.line.host or _host_of_traceback(text, first.position),
        process=first.line.process,
        evidence=first.line.text.strip()[:EVIDENCE],
        values=first.values,
    )


def _killed(clue: Clue, workers: Workers) -> Diagnosis | None:
    """Which worker died, where that is all that the clue tells."""
    ranks = re.findall(r"\d+", clue.values.get("worker", "")) if clue.signature.id == "worker-died" else []
    for rank in ranks:
        if rank in workers:
            host, pid = workers[rank]
            return Diagnosis(KILLED.id, host, clue.line.process, clue.line.text.strip()[:EVIDENCE],
                             {"worker": rank, "pid": str(pid)})
    return None


def _last(pattern: str, text: str) -> int:
    """Where the last match ends."""
    return max((found.end() for found in re.finditer(pattern, text)), default=0)


def _known(signature: Signature, text: str) -> list[Clue]:
    texts = [(literal, pattern) for literal, pattern in signature.texts if literal in text]
    over = _last(signature.until, text) if signature.until and texts else 0
    clues = [
        Clue(signature.kind, _distance(line), position, signature, line, _groups(found))
        for literal, pattern in texts
        for position, line in _lines_with(re.compile(re.escape(literal)), text, over)
        if (found := pattern.search(line.text))
    ]
    if signature.kind is Kind.STALL:
        return [max(clues, key=lambda clue: clue.position)] if len(clues) >= signature.times else []
    return clues


def _unknown(text: str, *, after_start: bool) -> Iterator[Clue]:
    """Exceptions that ended something. A server logs those of single requests too: they end nothing."""
    for position, line in _lines_with(EXCEPTION, text):
        found = EXCEPTION_LINE.match(line.text)
        harmless = line.level in ("DEBUG", "INFO", "WARNING") or (after_start and _distance(line) == 2)
        if found and not harmless:
            yield Clue(
                Kind.UNKNOWN, _distance(line), position, UNKNOWN, line, {"error": line.text[:EVIDENCE]}
            )
    for position, line in _lines_with(re.compile("  Value error, "), text):
        if found := VALUE_ERROR.match(line.text):
            yield Clue(Kind.UNKNOWN, _distance(line), position, UNKNOWN, line, _groups(found))


def _lines_with(pattern: re.Pattern[str], text: str, after: int = 0) -> Iterator[tuple[int, Line]]:
    """The first lines that contain it, with where they start."""
    for found in islice(pattern.finditer(text, after), MOST):
        start = text.rfind("\n", 0, found.start()) + 1
        end = text.find("\n", found.start())
        yield start, parse(text[start : end if end >= 0 else len(text)])


def _groups(found: re.Match[str]) -> dict[str, str]:
    return {name: value or "" for name, value in found.groupdict().items()}


def _distance(line: Line) -> int:
    if "Worker" in line.process:
        return 0
    return 1 if line.process.startswith("EngineCore") else 2


def _host_of_traceback(text: str, position: int) -> str:
    """The host that Ray names within the traceback that ends at ``position``."""
    before = text[max(0, position - 20_000) : position].rpartition("Traceback (most recent call last)")[2]
    hosts = RAY_TASK.findall(before)
    return hosts[-1] if hosts else ""
