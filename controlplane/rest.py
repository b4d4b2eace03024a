"""The REST API at ``/api``: nodes, runs, clusters, deployments, keys, usage, over the same stories as the pages.

Whoever asks shows an API key that may control Quarterdeck (``Authorization: Bearer qd-…``), which has its owner's
role, or comes from a page of ours with its session and CSRF token. The document is ``/api/openapi.json``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import msgspec
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.parser import Parser
from ninja.security import HttpBearer
from ninja.security.session import SessionAuth

from controlplane.api import Invalid
from controlplane.problems import Problem
from deployments.gateway import keys
from deployments.web import access_api
from deployments.web import api as deployments_api
from nodes.web import api as nodes_api
from nodes.web import cluster_api, registration_api


class StrictParser(Parser):
    """JSON within bounds: what nests too deeply, or is not UTF-8, is a 400 like any other nonsense."""

    def parse_body(self, request: HttpRequest) -> dict[str, Any]:
        try:
            return cast(dict[str, Any], msgspec.json.decode(request.body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HttpError(400, _("The request's body is not JSON: %s.") % error) from error


class KeyAuth(HttpBearer):
    """An API key that may control Quarterdeck. Raises `PermissionDenied` for one that may only send prompts."""

    def authenticate(self, request: HttpRequest, token: str) -> object:
        key = keys.of_program(token)
        if key is None:
            return None
        if not key.controls:
            raise PermissionDenied(_("This API key is for prompts only: it may not control Quarterdeck."))
        request.user = key.owner
        return key


class PageAuth(SessionAuth):
    """A page's session, with its CSRF token for whatever changes something."""

    def __call__(self, request: HttpRequest) -> object:
        return super().__call__(request) if request.user.is_authenticated else None


api = NinjaAPI(
    title="Quarterdeck",
    version="1",
    description=__doc__ or "",
    docs_url=None,
    openapi_url=None,
    auth=[KeyAuth(), PageAuth()],
    parser=StrictParser(),
    urls_namespace="api",
)
api.add_router("/", registration_api.router)
api.add_router("/", nodes_api.router)
api.add_router("/", cluster_api.router)
api.add_router("/", deployments_api.router)
api.add_router("/", access_api.router)


@api.get("/openapi.json", include_in_schema=False)
def openapi(request: HttpRequest) -> HttpResponse:
    return api.create_response(request, api.get_openapi_schema(path_prefix="/api/"), status=200)


def refusal(request: HttpRequest, status: int, what: str, next_step: str = "") -> HttpResponse:
    return api.create_response(request, {"error": {"what": what, "next": next_step}}, status=status)


@api.exception_handler(Problem)
def _problem(request: HttpRequest, error: Problem) -> HttpResponse:
    return refusal(request, 409, str(error.what), str(error.next_step))


@api.exception_handler(Invalid)
def _invalid(request: HttpRequest, error: Invalid) -> HttpResponse:
    return refusal(request, 422, error.what, _("Correct it and send the request again."))


@api.exception_handler(ValidationError)
def _unfit(request: HttpRequest, error: ValidationError) -> HttpResponse:
    first = error.errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "data"))
    return refusal(request, 422, f"{place}: {first['msg']}", _("The document /api/openapi.json says what fits."))


@api.exception_handler(AuthenticationError)
def _stranger(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    next_step = _("Make one on the Keys page that may control Quarterdeck; send it as “Authorization: Bearer qd-…”.")
    response = refusal(request, 401, _("No API key that is known was given."), next_step)
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


@api.exception_handler(PermissionDenied)
def _denied(request: HttpRequest, error: PermissionDenied) -> HttpResponse:
    return refusal(request, 403, str(error), _("Ask an admin for the role, or allow the key more on the Keys page."))


@api.exception_handler(Http404)
def _unknown(request: HttpRequest, error: Http404) -> HttpResponse:
    return refusal(request, 404, _("There is nothing of this name or number."), _("List what there is first."))


@api.exception_handler(RequestDataTooBig)
def _too_big(request: HttpRequest, error: RequestDataTooBig) -> HttpResponse:
    return refusal(request, 413, _("The request's body is larger than 2 MB."), _("Send less at once."))


@api.exception_handler(HttpError)
def _other(request: HttpRequest, error: HttpError) -> HttpResponse:
    return refusal(request, error.status_code, str(error), "")


View = Callable[..., HttpResponse]


def _in_shape(view: View) -> View:
    """The view, which asks for sign-in itself, and whose 405 has the shape of all refusals."""

    @wraps(view)
    def shaped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response = view(request, *args, **kwargs)
        if response.status_code != 405:
            return response
        said = refusal(request, 405, _("This address does not take %s.") % str(request.method)[:20], "")
        said.headers["Allow"] = response.headers["Allow"]
        return said

    shaped.login_required = False  # type: ignore[attr-defined]
    return shaped


@csrf_exempt
def nothing(request: HttpRequest, rest: str = "") -> HttpResponse:
    """Whatever else is asked for below /api."""
    next_step = _("The document /api/openapi.json lists them.")
    return refusal(request, 404, _("There is no such address in the API."), next_step)


def _urls() -> list[URLPattern]:
    patterns = [one for one in cast(list[URLPattern], api.urls[0]) if one.name != "api-root"]
    for pattern in patterns:
        pattern.callback = _in_shape(pattern.callback)
    return [*patterns, path("<path:rest>", _in_shape(nothing)), path("", _in_shape(nothing))]


app_name = "api"  # so that its names are not those of the pages
urlpatterns = _urls()
