"""Signing in and out, the language, and helpers that the views of both apps share."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST
from django.views.i18n import set_language as django_set_language
from django_htmx.http import HttpResponseClientRedirect


class SignInForm(AuthenticationForm):
    """Django's, with the sentence that says what to do next."""

    error_messages = {
        "invalid_login": _(
            "User name and password do not match an account. Check both; capital letters count. "
            "The first password is in var/admin-password on the machine that runs Quarterdeck."
        ),
        "inactive": _("This account is switched off. Ask an admin to switch it on."),
    }


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
