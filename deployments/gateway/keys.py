"""Keys of the gateway: made, revoked, and checked without a look into the database.

A key is ``qd-`` and 40 characters, the last 6 a checksum of the others: nonsense is refused without a
look-up. Only its SHA-256 is stored. A page's playground uses a session token instead: signed, valid for 12
hours, and no longer than the user's password.
"""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import User
from django.core import signing
from django.db.models import Sum
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from deployments.gateway.errors import ApiError, Header, Text
from deployments.gateway.limits import PAGES, Allowance
from deployments.gateway.routes import poke
from deployments.models import ApiKey
from deployments.usage import KeyLimits, Usage

UNLIMITED = Allowance()
PREFIX = "qd-"
SESSION_PREFIX = "qs-"
SESSION_SECONDS = 12 * 3600
_SALT = "quarterdeck.gateway.session"
_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Caller:
    """Who asks: an API key of a user, or a user's page (``key_id`` is None)."""

    user_id: int
    key_id: int | None = None
    expires_at: float = float("inf")  # Unix time
    allowance: Allowance = UNLIMITED
    used_today: int = 0  # tokens written down since midnight UTC; known for keys with a limit on it


@dataclass(frozen=True)
class Keyring:
    """The keys that may be used (SHA-256 in hex → caller) and the users who may sign in, as last read.

    Of each user it has the mark of their password, which a session token must bear.
    """

    callers: Mapping[str, Caller]
    users: Mapping[int, str]


def create(owner: User, name: str, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
    """A new key of ``owner``: the row, and the key itself, which is not kept and can be shown only now."""
    body = "".join(secrets.choice(_ALPHABET) for _ in range(34))
    plain = PREFIX + body + checksum(body)
    key = ApiKey.objects.create(
        name=name, owner=owner, prefix=plain[:8], digest=_digest(plain), expires_at=expires_at
    )
    poke()
    return key, plain


def revoke(key: ApiKey) -> None:
    """End a key. Gateways stop taking it at once, or within seconds where Redis is away."""
    ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())
    key.refresh_from_db(fields=["revoked_at"])
    poke()


def of_program(plain: str) -> ApiKey | None:
    """The usable key with this value, with its owner, from the database: for the REST API, not for prompts."""
    if not plausible(plain) or plain.startswith(SESSION_PREFIX):
        return None
    usable = ApiKey.objects.filter(digest=_digest(plain), revoked_at=None, owner__is_active=True)
    key = usable.select_related("owner").first()
    if key is None or (key.expires_at and key.expires_at <= timezone.now()):
        return None
    ApiKey.objects.filter(pk=key.pk).update(last_used_at=timezone.now())
    return key


def session_token(user: User) -> str:
    """With this a page of ``user`` may call the gateway for 12 hours, while user and password stay what they are."""
    return SESSION_PREFIX + signing.dumps([user.pk, password_mark(user)], salt=_SALT)


def password_mark(user: AbstractBaseUser) -> str:
    """Another one after each change of the password; as Django's sessions have it, but cut."""
    return user.get_session_auth_hash()[:16]


def load() -> Keyring:
    """All usable keys from the database."""
    allowances = _allowances()
    used = _used_today([key for key, allowance in allowances.items() if allowance.tokens_per_day is not None])
    usable = ApiKey.objects.filter(revoked_at=None, owner__is_active=True)
    callers = {
        digest: Caller(owner, pk, _ending(expires), allowances.get(pk, UNLIMITED), used.get(pk, 0))
        for digest, owner, pk, expires in usable.values_list("digest", "owner_id", "pk", "expires_at")
    }
    users = get_user_model().objects.filter(is_active=True).only("pk", "password")
    return Keyring(callers, {user.pk: password_mark(user) for user in users})


def _ending(expires_at: datetime | None) -> float:
    return expires_at.timestamp() if expires_at else float("inf")


def _allowances() -> dict[int, Allowance]:
    return {
        row.key_id: Allowance(
            row.requests_per_minute,
            row.tokens_per_minute,
            row.tokens_per_day,
            row.concurrent,
            frozenset(row.only_models),
        )
        for row in KeyLimits.objects.all()
    }


def _used_today(of: list[int]) -> dict[int | None, int]:
    rows = Usage.objects.filter(day=datetime.now(UTC).date(), key__in=of) if of else Usage.objects.none()
    sums = rows.order_by().values_list("key").annotate(Sum("prompt_tokens"), Sum("completion_tokens"))
    return {key: prompt + completion for key, prompt, completion in sums}


def presented(headers: list[Header]) -> str:
    """The key of a request: ``Authorization: Bearer`` or ``x-api-key``. Raises `ApiError` without one."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.strip().decode("latin-1")
    raise _refusal(
        "missing_api_key",
        _("No API key was given. Make one on the Keys page and send it as “Authorization: Bearer qd-…”."),
    )


def find(plain: str, keyring: Keyring, now: float) -> Caller | None:
    """The caller with this key, None when it is not in the keyring. Raises `ApiError` when it has expired."""
    session = plain.startswith(SESSION_PREFIX)
    caller = _session(plain, keyring) if session else keyring.callers.get(_digest(plain))
    if caller is not None and now >= caller.expires_at:
        raise _refusal("expired_api_key", _("This API key has expired. Make a new one on the Keys page."))
    return caller


def _session(token: str, keyring: Keyring) -> Caller | None:
    user_id, mark = _signed(token) or (0, "")
    return Caller(user_id, allowance=PAGES) if mark and keyring.users.get(user_id) == mark else None


def _signed(token: str) -> tuple[int, str] | None:
    """The user and the password's mark of a token that we made. Raises `ApiError` when it is too old."""
    try:
        user_id, mark = signing.loads(token.removeprefix(SESSION_PREFIX), salt=_SALT, max_age=SESSION_SECONDS)
    except signing.SignatureExpired as error:
        raise _refusal("expired_session", _("This page was opened too long ago. Load it again.")) from error
    except (signing.BadSignature, ValueError, TypeError):
        return None
    return user_id, mark


def plausible(plain: str) -> bool:
    """Whether this can be a key that was made since the last look: its checksum, or our signature, is right."""
    if plain.startswith(SESSION_PREFIX):
        return _signed(plain) is not None
    body, check = plain[len(PREFIX) : -6], plain[-6:]
    return plain.startswith(PREFIX) and len(body) == 34 and check == checksum(body)


def wrong() -> ApiError:
    return _refusal(
        "invalid_api_key",
        _("This API key is not known: it was mistyped or revoked. Make a new one on the Keys page."),
    )


def _refusal(code: str, message: Text) -> ApiError:
    return ApiError(401, code, message, headers=[(b"www-authenticate", b"Bearer")])


def _digest(plain: str) -> str:
    return hashlib.sha256(plain.encode()).hexdigest()


def checksum(body: str) -> str:
    """Six characters from CRC-32, as in other makers' tokens: it tells a typing error from a key, no more."""
    number, text = zlib.crc32(body.encode("utf-8", "replace")), ""
    for _place in range(6):
        number, digit = divmod(number, len(_ALPHABET))
        text = _ALPHABET[digit] + text
    return text
