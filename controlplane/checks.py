"""System checks of the configuration: each has an id and a hint that says what to set.

The errors stop ``bin/up`` and every management command; the warnings are for production (``check --deploy``).
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

#: The longest path a Unix socket can have on Linux, in bytes.
SOCKET_PATH_LIMIT = 107
#: Ports that Ray and vLLM use on a node, from PORT_BASE on.
PORTS_OF_A_NODE = 400


@register("quarterdeck")
def valkey_socket_fits(**_: Any) -> list[CheckMessage]:
    path = settings.REDIS_URL.removeprefix("unix://")
    if not settings.EMBEDDED_VALKEY or len(path.encode()) <= SOCKET_PATH_LIMIT:
        return []
    hint = "Set QUARTERDECK_VAR to a shorter path."
    return [Error(f"The path {path} is too long for a Unix socket.", hint=hint, id="quarterdeck.E001")]


@register("quarterdeck")
def redis_url_is_one(**_: Any) -> list[CheckMessage]:
    scheme = urlsplit(settings.REDIS_URL).scheme
    if scheme in ("redis", "rediss", "unix"):
        return []
    hint = "Give an address such as redis://host:6379/0, or leave REDIS_URL out to use the bundled server."
    return [Error(f"REDIS_URL begins with {scheme or 'nothing'}://.", hint=hint, id="quarterdeck.E002")]


@register("quarterdeck")
def field_key_is_usable(**_: Any) -> list[CheckMessage]:
    try:
        Fernet(settings.FIELD_KEY)
    except ValueError:
        hint = "It is 32 random bytes in URL-safe base64: head -c 32 /dev/urandom | base64 | tr '+/' '-_'"
        return [Error("FIELD_KEY is not a Fernet key.", hint=hint, id="quarterdeck.E003")]
    return []


@register("quarterdeck")
def node_ports_exist(**_: Any) -> list[CheckMessage]:
    last = 65536 - PORTS_OF_A_NODE
    if 1024 <= settings.PORT_BASE <= last:
        return []
    hint = f"Set PORT_BASE to a number from 1024 to {last}."
    return [Error(f"PORT_BASE is {settings.PORT_BASE}.", hint=hint, id="quarterdeck.E004")]


@register(Tags.security)
def secrets_are_private(**_: Any) -> list[CheckMessage]:
    """Secrets kept in ``var/`` are for their owner alone."""
    names = ("secret.key", "field.key", "metrics.token", "admin-password")
    return [
        Warning(f"{path} can be read by others.", hint=f"chmod 600 {path}", id="quarterdeck.W001")
        for path in (Path(settings.VAR_DIR) / name for name in names)
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]


@register(Tags.security, deploy=True)
def hosts_are_named(**_: Any) -> list[CheckMessage]:
    if "*" not in settings.ALLOWED_HOSTS:
        return []
    hint = "Set ALLOWED_HOSTS to the names people type, separated by commas."
    return [Warning("Quarterdeck answers to any host name.", hint=hint, id="quarterdeck.W002")]


@register(deploy=True)
def services_are_shared(**_: Any) -> list[CheckMessage]:
    """In production each process may run on its own machine; files and sockets do not reach that far."""
    found: list[CheckMessage] = []
    if settings.EMBEDDED_VALKEY:
        hint = "Set REDIS_URL to your Redis or Valkey server."
        found.append(Warning("The bundled Valkey serves one machine.", hint=hint, id="quarterdeck.W003"))
    if settings.DATABASES["default"]["ENGINE"].endswith("sqlite3"):
        hint = "Set DATABASE_URL to your PostgreSQL server."
        found.append(Warning("SQLite serves one machine.", hint=hint, id="quarterdeck.W004"))
    return found
