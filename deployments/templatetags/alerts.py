"""What every page shows of alerts."""

from __future__ import annotations

from typing import Any

from django import template

from deployments.alerts.models import Alert

register = template.Library()
#: Alerts that are named on the overview, and that are counted; the rest is on their own page.
NAMED, COUNTED = 5, 100


@register.inclusion_tag("alerts/bell_inner.html", takes_context=True)
def bell(context: template.Context) -> dict[str, Any]:
    """How many there are now."""
    count = len(_now(context))
    return {"count": count, "more": count == COUNTED}


@register.simple_tag(takes_context=True)
def firing(context: template.Context) -> list[Alert]:
    """The newest few of those that there are now."""
    return _now(context)[:NAMED]


def _now(context: template.Context) -> list[Alert]:
    """One query a page, for bell and banner."""
    request = context["request"]
    if not hasattr(request, "_alerts"):
        request._alerts = list(Alert.objects.filter(state="firing")[:COUNTED])
    return list(request._alerts)
