"""Around every page: strict security headers, the reader's time zone, and problems told as pages."""

from __future__ import annotations

from collections.abc import Callable
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from controlplane.problems import Problem

GetResponse = Callable[[HttpRequest], HttpResponse]

#: No inline script or style, nothing from elsewhere. 'self' covers websockets to the same host (CSP 3).
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)


class SecurityHeaders:
    """The headers that Django's own middleware does not set."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        response.headers.setdefault("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
        return response


class UserTimeZone:
    """Times are shown in the zone of the browser, which ``ui.js`` puts into the cookie ``tz``."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        with timezone.override(_zone(request.COOKIES.get("tz", ""))):
            return self.get_response(request)


def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a cookie may hold anything, also "../" or a folder
        return None


class ProblemPages:
    """A `Problem` that a view raised becomes a page, or an alert on the page that sent it by htmx: 409."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, Problem):
            return None
        if not request.headers.get("HX-Request"):
            return render(request, "problem.html", {"problem": error}, status=409)
        response = render(request, "ui/problem.html", {"problem": error}, status=409)
        response.headers["HX-Retarget"] = "#alerts"
        response.headers["HX-Reswap"] = "innerHTML show:window:top"
        return response
