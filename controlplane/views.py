"""Signing in and out, the language, and helpers that the views of both apps share."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST
from django.views.i18n import set_language as django_set_language
from django_htmx.http import HttpResponseClientRedirect

from controlplane import streams

#: So many failures for one name or one address, and sign-in rests for so long.
FAILURES = 10
FAILURES_SECONDS = 600


class SignInForm(AuthenticationForm):
    """Django's, with the sentence that says what to do next."""

    error_messages = {
        "invalid_login": _(
            "User name and password do not match an account. Check both; capital letters count. "
            "The first password is in var/admin-password on the machine that runs Quarterdeck."
        ),
        "inactive": _("This account is switched off. Ask an admin to switch it on."),
        "too_many": _(
            "Too many sign-ins with this name or from this address have failed. Wait ten minutes, then try again."
        ),
    }

    def clean(self) -> dict[str, Any]:
        """As Django's; refused without looking at the password after too many failures."""
        counters = [f"sign-in:{who}" for who in (self.data.get("username", "")[:150], self._address())]
        if any(streams.count(counter) >= FAILURES for counter in counters):
            raise self.get_invalid_login_error("too_many")
        try:
            return super().clean()
        except ValidationError:
            for counter in counters:
                streams.count(counter, add=1, seconds=FAILURES_SECONDS)
            raise

    def get_invalid_login_error(self, code: str = "invalid_login") -> ValidationError:
        return ValidationError(self.error_messages[code], code=code)

    def _address(self) -> str:
        return self.request.META.get("REMOTE_ADDR", "") if self.request else ""


class SignIn(LoginView):
    """The page that asks who you are; signed-in users go on to the overview."""

    template_name = "sign_in.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True


@login_not_required
@require_POST
def language(request: HttpRequest) -> HttpResponse:
    """Remember the language in a cookie and go back to ``next``."""
    response: HttpResponse = django_set_language(request)
    return response


def go(request: HttpRequest, to: object) -> HttpResponse:
    """On to another page, whether a form was sent by the browser or by htmx."""
    response = redirect(to)  # type: ignore[call-overload]
    if request.headers.get("HX-Request"):
        return HttpResponseClientRedirect(response.url)
    return response  # type: ignore[no-any-return]
