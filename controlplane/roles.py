"""Who may do what: viewers look, operators act, admins decide about trust and removal.

The roles are Django groups of these names. A superuser is an admin; somebody in no group is a viewer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseBase

VIEWER, OPERATOR, ADMIN = "viewer", "operator", "admin"
_RANK = {VIEWER: 0, OPERATOR: 1, ADMIN: 2}


class SignedIn(HttpRequest):
    """A request behind `LoginRequiredMiddleware`: its user is a real one. For type hints only."""

    user: User


def role_of(user: AbstractBaseUser | AnonymousUser) -> str:
    """The highest role the user has. One query at first, then remembered on the user object."""
    if not isinstance(user, User):
        return VIEWER
    if user.is_superuser:
        return ADMIN
    if not hasattr(user, "_deck_role"):
        names = [name for name in user.groups.values_list("name", flat=True) if name in _RANK]
        user._deck_role = max(names, key=_RANK.__getitem__, default=VIEWER)  # type: ignore[attr-defined]
    return str(user._deck_role)  # type: ignore[attr-defined]


def has_role(user: AbstractBaseUser | AnonymousUser, role: str) -> bool:
    """Whether the user has ``role`` or a higher one."""
    return _RANK[role_of(user)] >= _RANK[role]


View = Callable[Concatenate[Any, ...], HttpResponseBase]


def role_required(role: str) -> Callable[[View], View]:
    """Only users with ``role`` or a higher one reach the view; others get 403 (`PermissionDenied`)."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: SignedIn, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not has_role(request.user, role):
                raise PermissionDenied(role)
            return view(request, *args, **kwargs)

        return guarded

    return decorate
