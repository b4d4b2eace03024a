"""The page of alerts, the bell on every page, and the settings for admins."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from controlplane.problems import Problem
from controlplane.roles import ADMIN, SignedIn, role_required
from controlplane.views import go
from deployments.alerts import delivery
from deployments.alerts.forms import AlertForm
from deployments.alerts.look import channels
from deployments.alerts.models import Alert, AlertSettings, Delivery
from nodes.web.pages import subjects

#: Alerts that are over and still shown.
SHOWN = 100


@require_safe
def alerts(request: HttpRequest) -> HttpResponse:
    """What is wrong now, what was, and what could not be delivered."""
    firing = list(Alert.objects.filter(state="firing"))
    over = list(Alert.objects.filter(state="over")[:SHOWN])
    about = subjects({one.about for one in [*firing, *over]})
    page = {
        "firing": [(one, about.get(one.about)) for one in firing],
        "over": [(one, about.get(one.about)) for one in over],
        "undelivered": Delivery.objects.filter(sent_at=None).exclude(error="").select_related("alert")[:20],
    }
    return render(request, "alerts/list.html", page)


@require_safe
def bell(request: HttpRequest) -> HttpResponse:
    """The bell alone, for a page that was told of a change."""
    return render(request, "alerts/bell.html")


@require_http_methods(["GET", "POST"])
@role_required(ADMIN)
def settings(request: SignedIn) -> HttpResponse:
    current = AlertSettings.current()
    form = AlertForm(request.POST or None, settings=current)
    if request.method == "POST" and form.is_valid():
        form.save()
        messages.success(request, _("The settings of alerts are saved."))
        return redirect("alert-settings")
    page = {"form": form, "webhook": bool(current.webhook_url), "channels": channels(current)}
    return render(request, "alerts/settings.html", page, status=409 if form.is_bound else 200)


@require_POST
@role_required(ADMIN)
def test(request: SignedIn) -> HttpResponse:
    """Send a test to every channel now, and say what came of it."""
    current = AlertSettings.current()
    chosen = channels(current)
    if not chosen:
        raise Problem(_("There is nowhere to send to."), _("Save a webhook or an e-mail address first."))
    for channel in chosen:
        try:
            delivery.send(Delivery(channel=channel, what=Delivery.What.TEST), current)
            messages.success(request, _("The test was sent: %(channel)s.") % {"channel": channel.label})
        except Problem as problem:
            messages.error(request, f"{channel.label}: {problem}")
    return go(request, "alert-settings")
