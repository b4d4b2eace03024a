"""JSON views of a user's own conversations. Errors are ``{"error": {"message": …}}``, a sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import msgspec
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from controlplane.problems import Problem
from controlplane.roles import SignedIn
from deployments.playground import saved
from deployments.playground.models import Conversation

MOST_SENT = 8 * 1024 * 1024  # bytes of one request: a prompt with 5 MB of pictures, as base64
T = TypeVar("T")
View = Callable[..., HttpResponse]


class Unfit(Exception):
    """A request's body is not what the view takes."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def answers_json(view: View) -> View:
    """The view's refusals become JSON: 400 and 413 for its body, 404, and 409 for a `Problem`."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return view(request, *args, **kwargs)
        except Unfit as error:
            return _refused(error.status, str(error))
        except Conversation.DoesNotExist:
            return _refused(404, _("This conversation is not there any more."))
        except Problem as problem:
            return _refused(409, str(problem))

    return guarded


def _refused(status: int, sentence: str) -> JsonResponse:
    return JsonResponse({"error": {"message": sentence}}, status=status)


def _body(request: HttpRequest, shape: Any) -> Any:
    """The request's JSON as ``shape``. Reads no more than `MOST_SENT` bytes; raises `Unfit`."""
    if request.content_type != "application/json":
        raise Unfit(400, _("Send JSON, with Content-Type: application/json."))
    content = request.read(MOST_SENT + 1)
    if len(content) > MOST_SENT:
        raise Unfit(413, _("This is too large to be kept: a message may have 8 MB."))
    try:
        return msgspec.json.decode(content, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unfit(400, _("This cannot be kept: %s.") % error) from error


@require_http_methods(["GET", "HEAD", "POST"])
@answers_json
def conversations(request: SignedIn) -> HttpResponse:
    """The list; a POST begins a conversation (`saved.Begin`) and gives its id."""
    if request.method == "POST":
        begun = saved.begin(request.user, _body(request, saved.Begin))
        return JsonResponse({"id": begun.pk, "title": begun.title}, status=201)
    return JsonResponse({"conversations": saved.listed(request.user)})


@require_http_methods(["GET", "HEAD", "DELETE"])
@answers_json
def conversation(request: SignedIn, pk: int) -> HttpResponse:
    """All of one, or its end."""
    found = Conversation.objects.get(owner=request.user, pk=pk)
    if request.method == "DELETE":
        found.delete()
        return HttpResponse(status=204)
    return JsonResponse(saved.told(found))


@require_POST
@answers_json
def messages(request: SignedIn, pk: int) -> HttpResponse:
    """Append a prompt or an answer (`saved.Prompt`, `saved.Answer`)."""
    added = saved.add(request.user, pk, _body(request, saved.Prompt | saved.Answer))
    return JsonResponse({"id": added.pk, "server": added.server, "at": added.created_at}, status=201)
