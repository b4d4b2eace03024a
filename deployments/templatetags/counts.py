"""How the pages of keys and usage write numbers."""

from __future__ import annotations

from django import template
from django.utils.translation import gettext as _

register = template.Library()


@register.filter
def count(number: int) -> str:
    """``1234567`` → ``1,234,567``. In threes in every language: tokens are compared with what clients print."""
    return f"{number:,}"


@register.filter
def milliseconds(number: float | None) -> str:
    """A time with its unit: ``182 ms``, ``12.3 s``; a dash where none was measured."""
    if number is None:
        return "–"
    return _("%d ms") % number if number < 9999.5 else _("%.1f s") % (number / 1000)
