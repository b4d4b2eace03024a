"""Sends what is to be told: a signed document to the webhook, plain text by e-mail; tried again, later and later."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import socket
from datetime import timedelta
from smtplib import SMTPException
from typing import Any
from urllib.parse import urlsplit

import httpx
from django.conf import settings as django_settings
from django.core.mail import send_mail
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments.alerts.models import AlertSettings, Delivery

ATTEMPTS = 8
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=15), timedelta(hours=1)
#: Messages that are sent in one go.
AT_ONCE = 20
#: Seconds in which nobody else takes up a message that is being sent.
CLAIM = timedelta(seconds=90)
PATIENCE = 10.0


def send_due(transport: httpx.BaseTransport | None = None) -> None:
    """Send what is due, a few messages; each is taken up by one worker."""
    settings = AlertSettings.current()
    for delivery in Delivery.objects.filter(next_at__lte=timezone.now()).select_related("alert")[:AT_ONCE]:
        claimed = Delivery.objects.filter(pk=delivery.pk, next_at=delivery.next_at)
        if claimed.update(next_at=timezone.now() + CLAIM, attempts=F("attempts") + 1):
            _try(delivery, settings, transport)


def _try(delivery: Delivery, settings: AlertSettings, transport: httpx.BaseTransport | None) -> None:
    """One attempt, and what came of it."""
    attempts = delivery.attempts + 1
    try:
        send(delivery, settings, transport)
    except Problem as problem:
        pause = min(FIRST_PAUSE * 2**delivery.attempts, LONGEST_PAUSE)
        next_at = timezone.now() + pause if attempts < ATTEMPTS else None
        Delivery.objects.filter(pk=delivery.pk).update(error=str(problem.what)[:300], next_at=next_at)
    else:
        Delivery.objects.filter(pk=delivery.pk).update(error="", next_at=None, sent_at=timezone.now())


def send(delivery: Delivery, settings: AlertSettings, transport: httpx.BaseTransport | None = None) -> None:
    """Send one message now. Raises `Problem`."""
    if delivery.channel == Delivery.Channel.EMAIL:
        _mail(delivery, settings)
    else:
        _post(document(delivery), settings, transport)


def document(delivery: Delivery) -> dict[str, Any]:
    """What the webhook gets."""
    alert = delivery.alert
    if alert is None:
        return {"event": "test", "title": _("A test"), "text": _("This is a test message of Quarterdeck.")}
    over = delivery.what == Delivery.What.OVER
    return {
        "event": "resolved" if over else "firing",
        "rule": alert.kind,
        "about": alert.about,
        "name": alert.name,
        "value": alert.value,
        "title": alert.title,
        "text": _("Over: %(what)s") % {"what": alert} if over else str(alert),
        "began_at": alert.began_at.isoformat(),
        "ended_at": alert.ended_at.isoformat() if alert.ended_at else None,
    }


def _post(content: dict[str, Any], settings: AlertSettings, transport: httpx.BaseTransport | None) -> None:
    url = settings.webhook_url.reveal()
    refuse_address(url)
    body = json.dumps(content).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "Quarterdeck"}
    if settings.webhook_secret:
        digest = hmac.new(settings.webhook_secret.reveal().encode(), body, hashlib.sha256).hexdigest()
        headers["X-Quarterdeck-Signature"] = f"sha256={digest}"
    try:
        # A redirect is not followed: it could lead where the address itself may not.
        with httpx.Client(transport=transport, timeout=PATIENCE, trust_env=True) as client:
            status = client.post(url, content=body, headers=headers).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unsent(_("the webhook does not answer (%(error)s)") % {"error": type(error).__name__}) from error
    if not 200 <= status < 300:
        raise _unsent(_("the webhook answered with status %(status)d") % {"status": status})


def refuse_address(url: str) -> None:
    """Raise `Problem` for an address that no message may go to: see docs/security.md."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise _no_address() from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise _no_address()
    try:
        found = {info[4][0] for info in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise _unsent(_("the name %(host)s is not known") % {"host": parts.hostname}) from error
    for text in found:
        address = ipaddress.ip_address(str(text).partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        if mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified:
            raise _no_address()


def _no_address() -> Problem:
    return Problem(
        _("This is no address that messages may be sent to."),
        _("Give an http or https address without a user name; addresses of the link itself (169.254…) are refused."),
    )


def _unsent(why: str) -> Problem:
    what = _("The message was not delivered: %(why)s.") % {"why": why}
    return Problem(what, _("Check the address, then test again."))


def _mail(delivery: Delivery, settings: AlertSettings) -> None:
    if not django_settings.EMAIL_HOST:
        raise Problem(_("No mail server is set."), _("Set EMAIL_HOST, see docs/operations.md."))
    content = document(delivery)
    text = "\n".join(str(part) for part in (content["text"], content.get("began_at")) if part)
    subject = " ".join(f"[Quarterdeck] {content['title']} {content.get('name', '')}".split())
    try:
        send_mail(subject, text, None, settings.addresses)
    except (SMTPException, OSError) as error:
        raise _unsent(_("the mail server refused it (%(error)s)") % {"error": type(error).__name__}) from error
