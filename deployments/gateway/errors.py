"""What a caller of the gateway is told when a request cannot be served: OpenAI's shape, our sentences."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, TypeAlias

from django.conf import settings
from django.utils import translation
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _
from django.utils.translation import trans_real

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

Header = tuple[bytes, bytes]
Text: TypeAlias = "str | _StrPromise"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A refusal, sent to the client as OpenAI's ``{"error": {…}}``.

    ``message`` is a sentence (lazy: it is translated for the one who reads it); ``code`` is a word for
    programs. ``retry_after`` is in seconds.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: Text,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        headers: Iterable[Header] = (),
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = list(headers)
        if retry_after is not None:
            self.headers.append((b"retry-after", str(retry_after).encode()))

    def text(self, language: str) -> str:
        """The sentence in ``language``."""
        with translation.override(language):
            return str(self.message)

    def body(self, language: str = "en") -> bytes:
        """The JSON body, with the message in ``language``."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.text(language), "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode()


def not_offered(name: str, path: str) -> ApiError:
    """For what a model's server does not have, since its model is of another kind."""
    sentence = _("The model “{name}” does not offer {path}: it is of another kind.")
    return ApiError(404, "endpoint_not_offered", format_lazy(sentence, name=name, path=path))


def language_of(headers: Iterable[Header]) -> str:
    """The language of a browser's page: its cookie, else Accept-Language; English for programs."""
    found = dict(headers)
    wanted = [_cookie(found.get(b"cookie", b"")), *_accepted(found.get(b"accept-language", b""))]
    for code in filter(None, wanted):
        try:
            return translation.get_supported_language_variant(code)
        except LookupError:
            continue
    return "en"


def _cookie(value: bytes) -> str:
    try:
        jar = SimpleCookie(value[:4096].decode("latin-1"))
    except CookieError:
        return ""
    found = jar.get(settings.LANGUAGE_COOKIE_NAME)
    return found.value if found else ""


def _accepted(value: bytes) -> list[str]:
    return [code for code, _ in trans_real.parse_accept_lang_header(value[:200].decode("latin-1"))]
