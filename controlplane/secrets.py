"""Secrets: a string that prints masked, and a database field that is encrypted with a key outside the database."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.db import models

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


def unseal(token: str) -> Secret:
    """Decrypt what `seal` made. Raises `Problem` when the key is not the one it was sealed with."""
    try:
        return Secret(_cipher(settings.FIELD_KEY).decrypt(token.encode()).decode())
    except InvalidToken as error:
        raise Problem(
            "A stored secret cannot be read: the encryption key is not the one it was written with.",
            "Restore var/field.key (or FIELD_KEY) from the backup, or enter the secret again.",
        ) from error


class EncryptedField(models.TextField):  # type: ignore[type-arg]
    """Text that is encrypted at rest and comes back as a `Secret`; empty stays empty."""

    def get_prep_value(self, value: Any) -> Any:
        return seal(value) if value else ""

    def from_db_value(self, value: str | None, expression: object, connection: object) -> Secret:
        return unseal(value) if value else Secret("")
