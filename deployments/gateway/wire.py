"""Heads of requests and answers: what goes up to a model server, what comes back, and what stays here."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from typing import Final

from controlplane.secrets import Secret
from deployments.gateway.client import Origin
from deployments.gateway.errors import Header

#: What is passed on, and the path that vLLM has it under. Nothing else of a model server can be reached: its
#: management paths stay its own.
ENDPOINTS: Final[Mapping[str, bytes]] = {
    **{
        f"/v1/{name}": f"/v1/{name}".encode()
        for name in (
            "chat/completions",
            "chat/completions/batch",
            "chat/completions/render",
            "completions",
            "completions/render",
            "embeddings",
            "responses",
            "responses/render",
            "messages",
            "messages/count_tokens",
            "messages/render",
            "score",
            "systemone",
            "rerank",
            "audio/speech",
            "audio/transcriptions",
            "audio/translations",
        )
    },
    **{
        f"/v1/{name}": f"/{name}".encode()
        for name in ("tokenize", "detokenize", "pooling", "classify", "generative_scoring")
    },
    "/v1/embed": b"/v2/embed",  # Cohere's
}
#: All that a model server says of a path that it does not have, since its model is of another kind.
UNOFFERED: Final = b'{"detail":"Not Found"}'
#: The endpoints whose streams take ``stream_options``.
COMPLETIONS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_STAYS_HERE = _HOP_BY_HOP | frozenset(
    b"host content-length authorization api-key x-api-key cookie accept-encoding expect x-request-id "
    b"forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip origin referer".split()
)
_NOT_BACK = _HOP_BY_HOP | frozenset(b"server date set-cookie x-request-id x-accel-buffering".split())
_REQUEST_ID = re.compile(rb"[\w.:-]{1,128}")


def request_id(headers: Iterable[Header]) -> bytes:
    """The id the client gave its request, or a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return b"%032x" % random.getrandbits(128)  # a name, no secret


def value_of(headers: Iterable[Header], name: bytes) -> bytes:
    """The first value of a header (name in lower case), or nothing."""
    for key, value in headers:
        if key == name:
            return value
    return b""


def going_up(headers: Iterable[Header]) -> bytes:
    """The client's header lines that a model server may see."""
    dropped = _STAYS_HERE | _named_in_connection(headers)
    return b"".join(b"%s: %s\r\n" % (name, value) for name, value in headers if name not in dropped)


def request(path: bytes, origin: Origin, key: Secret, lines: bytes, marked: bytes, body: bytes) -> bytes:
    """A whole request for a model server, with its own key; ``marked`` is the request id."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    head = (
        f"Host: {host}:{origin.port}\r\nAuthorization: Bearer {key.reveal()}\r\n"
        f"Accept-Encoding: identity\r\nContent-Length: {len(body)}\r\n"
    )
    return b"POST %s HTTP/1.1\r\n%sX-Request-Id: %s\r\n%s\r\n%s" % (path, head.encode(), marked, lines, body)


def coming_back(headers: list[Header], marked: bytes, events: bool) -> list[Header]:
    """The header of an answer as the client gets it."""
    dropped = _NOT_BACK | _named_in_connection(headers)
    kept = [(name, value) for name, value in headers if name not in dropped]
    kept.append((b"x-request-id", marked))
    if events:  # its length may change on the way, and no proxy in front may wait for more
        kept = [one for one in kept if one[0] != b"content-length"]
        kept.append((b"x-accel-buffering", b"no"))
    return kept


def _named_in_connection(headers: Iterable[Header]) -> frozenset[bytes]:
    listed = value_of(headers, b"connection").lower()
    return frozenset(name.strip() for name in listed.split(b",")) if listed else frozenset()
