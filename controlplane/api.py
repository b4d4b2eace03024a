"""What the modules of the REST API share: who may do what, lists in pages, refusals in one shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar

from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.forms import Form
from django.http import HttpRequest
from django.utils.translation import gettext as _
from ninja import Field, Schema
from pydantic import StringConstraints

from controlplane.roles import SignedIn, has_role

#: A name as it stands in an address; what has another shape names nothing.
Name = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9._-]+$")]
#: A row's number; more than a database can hold is refused before it is asked.
Number = Annotated[int, Field(ge=1, le=2**63 - 1)]
Small = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: A name that may be left out.
Word = Annotated[str, StringConstraints(max_length=63, pattern=r"^[A-Za-z0-9._-]*$")]
#: Text without what databases do not store.
Text = Annotated[str, StringConstraints(max_length=20_000, pattern=r"^[^\x00]*$")]
Line = Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^\x00-\x1f]*$")]

Item = TypeVar("Item", bound=Schema)
Row = TypeVar("Row", bound=Model)


class Told(Schema):
    """What happened, and what to do next."""

    what: str
    next: str


class Failure(Schema):
    """Every refusal has this shape; its status says of which kind it is."""

    error: Told


#: The refusals that any operation may give, for the OpenAPI document.
FAILURES: dict[Any, Any] = dict.fromkeys((400, 401, 403, 404, 405, 409, 413, 422), Failure)


class Invalid(Exception):
    """The fields of a form that do not fit: a 422 that names them."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Window(Schema):
    """The part of a list that is wanted."""

    limit: int = Field(50, ge=1, le=200)
    offset: int = Field(0, ge=0, le=1_000_000)


class Listed(Schema, Generic[Item]):
    """A part of a list, and how long the whole is."""

    count: int
    items: list[Item]


def listed(found: QuerySet[Row], window: Window, tell: Callable[[Row], Item]) -> dict[str, Any]:
    """The window's part of a query, told."""
    part = found[window.offset : window.offset + window.limit]
    return {"count": found.count(), "items": [tell(row) for row in part]}


def needs(request: HttpRequest, role: str) -> SignedIn:
    """The request of a user who has ``role`` or a higher one. Raises `PermissionDenied`."""
    if not has_role(request.user, role):
        raise PermissionDenied(_("This needs the role %s.") % role)
    return request  # type: ignore[return-value]  # authentication has put a real user there


def checked(form: Form) -> dict[str, Any]:
    """The values of a form that fit, as a page would take them. Raises `Invalid`."""
    if form.is_valid():
        return form.cleaned_data
    problem = getattr(form, "problem", None)
    said = [f"{name}: {' '.join(str(error) for error in errors)}" for name, errors in form.errors.items()]
    raise Invalid(str(problem) if problem else " ".join(said).replace("__all__: ", ""))
