"""Registering many servers from one page: their keys are asked for, shown together, approved, then all are registered.

Level-triggered as runs are: a candidate's state says what is wanted next, `advance` does it, and calling it twice or
killing it in the middle costs nothing but time. One candidate's hanging host holds one thread, and nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import get_language, override
from django.utils.translation import gettext as _

from controlplane import streams
from controlplane.problems import Problem
from nodes import registration, tasks
from nodes.candidates import PENDING_SECONDS, Batch, Candidate, SignIn
from nodes.hostlist import Bad, Row
from nodes.hosts import identity
from nodes.models import Bastion, Node
from nodes.registration import DIRECT, Login, Way
from nodes.remote.ssh import HostKey
from nodes.states import CandidateState

#: Seconds for which one worker has a candidate to itself; longer than all limits of one registration together.
_BUSY_SECONDS = 90
OPEN = (CandidateState.ASKING, CandidateState.OFFERED, CandidateState.APPROVED)
_TO_DO = (CandidateState.ASKING, CandidateState.APPROVED)
_KEPT = timedelta(days=1)


def begin(
    found: Iterable[Row | Bad], sign_in: SignIn, by: User | None, *,
    jump: Node | None = None, bastion: Row | None = None, labels: Sequence[str] = (),
    typed: Mapping[str, Any] | None = None,
) -> Batch:
    """Keep the servers of a form and have them asked for their keys; ``typed`` comes back when it is to be changed.

    ``bastion`` is a jump host that is no node: one that is known already is used as it is, another goes first.
    """
    known = _known(bastion) if bastion else None
    with transaction.atomic():
        batch = Batch.objects.create(
            created_by=by, sign_in=sign_in.seal(), jump=jump, bastion=known, labels=list(labels),
            typed={**(typed or {}), "language": get_language()})
        rows = [_candidate(batch, row) for row in found]
        if bastion and not known:
            rows.append(Candidate(batch=batch, is_bastion=True, name=bastion.name, user=bastion.user,
                                  address=bastion.address, port=bastion.port))
        Candidate.objects.bulk_create(rows)
        queue(batch)
    return batch


def _known(bastion: Row) -> Bastion | None:
    return Bastion.objects.filter(address=bastion.address, port=bastion.port, user=bastion.user).first()


def _candidate(batch: Batch, row: Row | Bad) -> Candidate:
    if isinstance(row, Bad):
        return Candidate(batch=batch, typed=row.typed, state=CandidateState.FAILED, reason=row.why)
    return Candidate(batch=batch, name=row.name, user=row.user, address=row.address, port=row.port)


def queue(batch: Batch) -> None:
    """Have a worker go on with the batch soon."""
    transaction.on_commit(lambda: tasks.send(tasks.advance_batch, batch.pk))


def approve(batch: Batch, fingerprints: Mapping[int, str]) -> int:
    """Register these candidates (key → the fingerprint that was shown); returns how many. Raises `Problem`."""
    offered = {each.pk: each for each in batch.candidates.filter(state=CandidateState.OFFERED, pk__in=fingerprints)}
    for pk, shown in fingerprints.items():
        if pk in offered and HostKey(offered[pk].host_key).fingerprint != shown:
            raise Problem(
                _("%(name)s shows another key by now than the one on this page.") % {"name": offered[pk].name},
                _("Open the page again and compare the fingerprint it shows now."))
    SignIn.unseal(batch.sign_in)  # says so, if it is too late
    count = sum(each.move(CandidateState.APPROVED) for each in offered.values())
    queue(batch)
    return count


def again(batch: Batch) -> None:
    """Ask those that failed once more. Raises `Problem` when their sign-in is forgotten."""
    SignIn.unseal(batch.sign_in)
    for candidate in batch.candidates.filter(state=CandidateState.FAILED).exclude(address=""):
        candidate.move(CandidateState.ASKING)
    queue(batch)


def advance(batch_id: int) -> None:
    """Do what can be done for the batch now: ask for keys, register those that are approved."""
    batch = Batch.objects.select_related("jump", "bastion", "created_by").get(pk=batch_id)
    with override(batch.typed.get("language")):
        try:
            sign_in = SignIn.unseal(batch.sign_in)
        except Problem as problem:
            _give_up(batch, problem)
            return
        identity()  # made once, before many ask for it
        try:
            sign_in = registration.opened(sign_in)
        except Problem as problem:
            for candidate in _ready(batch):
                candidate.move(CandidateState.FAILED, problem.told)
        registration.at_once(lambda each: _take(each, batch, sign_in), list(_ready(batch)))
        _wipe_when_over(batch)


def _ready(batch: Batch) -> QuerySet[Candidate]:
    """Those that can be worked on: a jump host that has to be registered first holds the others back."""
    waiting = batch.candidates.filter(state__in=_TO_DO)
    first = batch.candidates.filter(is_bastion=True).exclude(state=CandidateState.REGISTERED)
    return waiting.filter(is_bastion=True) if first.exists() else waiting


def _take(candidate: Candidate, batch: Batch, sign_in: SignIn) -> None:
    """Work on one candidate, unless another worker just does."""
    busy = f"candidate:{candidate.pk}"
    if not streams.client().set(busy, 1, nx=True, ex=_BUSY_SECONDS):
        return
    try:
        _work(candidate.fresh(), batch, sign_in)
    except Problem as problem:
        candidate.move(CandidateState.FAILED, problem.told)
    finally:
        streams.client().delete(busy)


def _work(candidate: Candidate, batch: Batch, sign_in: SignIn) -> None:
    login = _login(candidate, sign_in, batch.labels)
    way = Way(batch.jump, batch.bastion)
    if candidate.state == CandidateState.ASKING:
        key = registration.offered_key(login, DIRECT if candidate.is_bastion else way)
        candidate.move(CandidateState.OFFERED, host_key=key.line)
    elif candidate.state == CandidateState.APPROVED and candidate.is_bastion:
        bastion = registration.register_bastion(login, candidate.host_key)
        Batch.objects.filter(pk=batch.pk).update(bastion=bastion)
        candidate.move(CandidateState.REGISTERED)
        queue(batch)  # the others can be asked now
    elif candidate.state == CandidateState.APPROVED:
        node = _registered(candidate, login, batch, way)
        candidate.move(CandidateState.REGISTERED, node=node)


def _login(candidate: Candidate, sign_in: SignIn, labels: Sequence[str]) -> Login:
    return Login(candidate.name, candidate.address, candidate.port, candidate.user, labels=tuple(labels),
                 **sign_in.fields)


def _registered(candidate: Candidate, login: Login, batch: Batch, way: Way) -> Node:
    """The candidate's node; one that a worker registered before it was killed is that."""
    known = Node.objects.filter(
        name=login.name, address=login.address, port=login.port, user=login.user, host_key=candidate.host_key,
        created_at__gte=batch.created_at).first()
    return known or registration.register(login, candidate.host_key, batch.created_by, way)


def _give_up(batch: Batch, problem: Problem) -> None:
    Batch.objects.filter(pk=batch.pk).update(sign_in="")
    for candidate in batch.candidates.filter(state__in=OPEN):
        candidate.move(CandidateState.FAILED, problem.told)


def _wipe_when_over(batch: Batch) -> None:
    """Once all are registered, what was typed to sign in is not needed more; until then a retry needs it."""
    if not batch.candidates.exclude(state=CandidateState.REGISTERED).exclude(address="").exists():
        Batch.objects.filter(pk=batch.pk).update(sign_in="")


def sweep() -> None:
    """Go on with what is unfinished, forget sign-ins that are too old, and old batches. Called every half minute."""
    now = timezone.now()
    Batch.objects.filter(created_at__lt=now - _KEPT).delete()
    old = now - timedelta(seconds=PENDING_SECONDS)
    due = Batch.objects.filter(created_at__lt=old).exclude(sign_in="")
    unfinished = Batch.objects.filter(candidates__state__in=_TO_DO)
    for pk in {*due.values_list("pk", flat=True), *unfinished.values_list("pk", flat=True)}:
        tasks.send(tasks.advance_batch, pk)
