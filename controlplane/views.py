"""Signing in and out, the language, and helpers that the views of both apps share."""

from __future__ import annotations

from ipaddress import IPv6Network, ip_address
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

#: So many failures of one name from one address, and its sign-in from there rests for so long.
FAILURES = 10
FAILURES_SECONDS = 600
#: Of one address, with whatever names.
ADDRESS_FAILURES = 30
#: A name with so many from everywhere is under attack: each address may try it a few times only. Its owner, from an
#: address of their own, is never kept out by strangers.
NAME_FAILURES = 100
FEW_FAILURES = 3


class SignInForm(AuthenticationForm):
    """Django's, with the sentence that says what to do next."""

    error_messages = {
        "invalid_login": _(
            "User name and password do not match an account. Check both; capital letters count. "
            "The first password is in var/admin-password on the machine that runs Quarterdeck."
        ),
        "inactive": _("This account is switched off. Ask an admin to switch it on."),
        "too_many": _(
            "Too many sign-ins from your address have failed. Wait ten minutes, then try again."
        ),
    }

    def clean(self) -> dict[str, Any]:
        """As Django's; refused without looking at the password after too many failures."""
        if not (self.cleaned_data.get("username") and self.cleaned_data.get("password")):
            return super().clean()  # there is nothing to look at
        # The name as Django will look it up, so that no other spelling of it has a count of its own.
        name, address = self.cleaned_data["username"].casefold(), self._address()
        by_name, by_address, by_both = f"sign-in:{name}", f"sign-in-from:{address}", f"sign-in:{name} from {address}"
        # Counted before the password is looked at: a hundred tries at once are a hundred tries.
        most = FAILURES if streams.count(by_name) < NAME_FAILURES else FEW_FAILURES
        if (tries := _count(by_both)) > most or _count(by_address) > ADDRESS_FAILURES:
            raise self.get_invalid_login_error("too_many")
        _count(by_name)
        data = super().clean()
        for counter, back in ((by_name, 1), (by_address, 1), (by_both, tries)):
            streams.count(counter, add=-back, seconds=FAILURES_SECONDS)
        return data

    def get_invalid_login_error(self, code: str = "invalid_login") -> ValidationError:
        return ValidationError(self.error_messages[code], code=code)

    def _address(self) -> str:
        """Where the request comes from; of IPv6 the network, as whoever has one address has all of its /64."""
        text = self.request.META.get("REMOTE_ADDR", "") if self.request else ""
        try:
            address = ip_address(text)
        except ValueError:  # a Unix socket has none
            return text
        if address.version == 4 or address.ipv4_mapped:
            return str(address)
        return str(IPv6Network((int(address), 64), strict=False))


def _count(name: str) -> int:
    return streams.count(name, add=1, seconds=FAILURES_SECONDS)


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
