"""Numbers as the plan's sentences say them."""

from __future__ import annotations

from django.utils.translation import gettext as _

from deployments.plan.hosts import GIB


def gib(size: float) -> str:
    """``27.5 GiB``."""
    return _("%(size).1f GiB") % {"size": size / GIB}


def count(number: float) -> str:
    """``262,144``; three leading digits are enough for an estimate of tokens a second."""
    return f"{number:,.0f}"


def rate(speed: float) -> str:
    """A speed rounded to two digits, since it is an estimate: ``870``, ``3,500``."""
    digits = max(0, len(str(int(speed))) - 2)
    return count(round(speed, -digits)) if speed >= 1 else f"{speed:.1f}"


def layout(tensor: int, pipeline: int, replicas: int = 1) -> str:
    """``TP=4, PP=2``, with the copies where there are several."""
    text = f"TP={tensor}, PP={pipeline}"
    return _("%(count)d copies of %(layout)s") % {"count": replicas, "layout": text} if replicas > 1 else text
