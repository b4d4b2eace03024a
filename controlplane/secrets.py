"""Secrets: a string that prints masked, and a database field that is encrypted with a key outside the database."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.db import models
from django.utils.translation import gettext as _

from controlplane.problems import Problem

MASK = "••••••"


class Secret(str):
    """A string that is real on the wire and masked wherever it is printed, formatted or logged.

    ``reveal()`` is the only way to the text; search for it to find each place where a secret leaves.
    """

    __slots__ = ()

    def reveal(self) -> str:
        return str.__str__(self)[:]

    def __str__(self) -> str:
        return MASK if len(self) else ""

    def __repr__(self) -> str:
        return f"Secret({MASK!r})" if len(self) else "Secret('')"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


NO_SECRET = Secret("")


@lru_cache(maxsize=4)
def _cipher(key: str) -> Fernet:
    return Fernet(key.encode())


def seal(text: str) -> str:
    """Encrypt text with the installation's key."""
    raw = text.reveal() if isinstance(text, Secret) else text
    return _cipher(settings.FIELD_KEY).encrypt(raw.encode()).decode()


def unseal(token: str, ttl: int | None = None) -> Secret:
    """Decrypt what `seal` made, less than ``ttl`` seconds ago where that is given.

    Raises `Problem` when the key is not the one it was sealed with, or the time is over.
    """
    try:
        return Secret(_cipher(settings.FIELD_KEY).decrypt(token.encode(), ttl).decode())
    except InvalidToken as error:
        raise _unreadable() if ttl is None else _over() from error


def _unreadable() -> Problem:
    return Problem(
        _("A stored secret cannot be read: the encryption key is not the one it was written with."),
        _("Restore var/field.key (or FIELD_KEY) from the backup, or enter the secret again."),
    )


def _over() -> Problem:
    return Problem(
        _("What was kept sealed for a short while is too old, or the encryption key has changed."), _("Type it again.")
    )


class EncryptedField(models.TextField):  # type: ignore[type-arg]
    """Text that is encrypted at rest and comes back as a `Secret`; empty stays empty."""

    def get_prep_value(self, value: Any) -> Any:
        return seal(value) if value else ""

    def from_db_value(self, value: str | None, expression: object, connection: object) -> Secret:
        return unseal(value) if value else Secret("")
