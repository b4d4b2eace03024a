"""Why a server did not start, hangs or died, in sentences: the first real error of its log, the phase, the host."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

from django.utils.translation import gettext as _

from controlplane import streams
from controlplane.problems import Problem
from deployments import diagnosis
from deployments.diagnosis import Diagnosis
from deployments.models import Replica
from deployments.rollout.phases import PHASES, PhaseReader, Progress
from nodes import logs, runs
from nodes.clusters.address import names_by_address
from nodes.models import Job

#: Bytes of a log's end in which its failure is looked for.
_LOOKED_AT = 1 << 20
#: Seconds without a new line after which a start that seems to hang does.
QUIET = 60.0
#: vLLM says every few seconds that it waits for GPUs; so long it may, others may just be letting them go.
_WAITS, _WAITS_SECONDS = "placement-waits", 20


def progress(pieces: Iterable[bytes]) -> Progress:
    """How far a start is, by the pieces of its log from the beginning on."""
    reader = PhaseReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.progress


def of_start(job: Job) -> str:
    """Why a server's start failed, and in which phase."""
    reached = progress(chunk.data for chunk in streams.read(streams.log_key(job.pk), 0)).phase
    return _in_phase(reached, of_end(job))


def of_end(job: Job) -> str:
    """Why a server ended; its status says nothing: vLLM exits with 0 when its engine dies."""
    found = diagnosis.match(logs.tail(job, _LOOKED_AT), _workers(job))
    return f"{_cause(found)}\n{_named(found).fix}" if found else runs.last_words(job)


def _workers(job: Job) -> dict[str, tuple[str, int]]:
    """Those of the engine that the job serves with, by rank: the address of each one's host, and its process there."""
    known = Replica.objects.filter(server=job).values_list("measured", flat=True).first() or {}
    return {rank: (host or job.node.address, pid) for rank, (host, pid) in known.get("workers", {}).items()}


def check_goes_on(job: Job, reached: Progress) -> None:
    """Raise `Problem` for a start that waits for what will not come: vLLM itself would wait for half an hour."""
    quiet = _quiet_for(job)
    found = diagnosis.match(logs.tail(job, _LOOKED_AT))
    if found is None or found.severity != "stalls":
        return
    in_vain = found.id == _WAITS and int(found.values.get("seconds", 0)) >= _WAITS_SECONDS
    if in_vain or quiet > QUIET:
        raise Problem(_in_phase(reached.phase, _cause(found)), _named(found).fix)


def _in_phase(phase: str, why: str) -> str:
    return _("%(phase)s: %(why)s") % {"phase": PHASES[phase], "why": why} if phase in PHASES else why


def _cause(found: Diagnosis) -> str:
    """The cause with the node that it is about, where that is another than the server's own."""
    named = _named(found)
    if not named.host or named.host in named.cause:
        return named.cause
    return _("on %(host)s: %(why)s") % {"host": named.host, "why": named.cause}


def _named(found: Diagnosis) -> Diagnosis:
    """With a node's name for its address."""
    if not found.host:
        return found
    return replace(found, host=names_by_address().get(found.host, found.host))


def _quiet_for(job: Job) -> float:
    """Seconds for which the job's log has not grown, as far as it was asked for."""
    key, end, now = f"quiet:{job.pk}", streams.end(streams.log_key(job.pk)) or 0, time.time()
    known = cast(bytes | None, streams.client().get(key))
    before, _separator, since = known.decode().partition(" ") if known else ("", "", "")
    if before != str(end):
        streams.client().set(key, f"{end} {now}", ex=3600)
        return 0.0
    return now - float(since)
