"""Numbers of a plan in templates."""

from __future__ import annotations

from django import template

register = template.Library()
_WIDTHS = (1, 2, 4)


@register.filter
def thousands(number: float) -> str:
    """``262,144``, in every language."""
    return f"{number:,.0f}"


@register.filter
def plain(number: float) -> str:
    """A number for an attribute of SVG: with a point, in every language."""
    return f"{number:.2f}"


@register.filter
def cells(count: int) -> int:
    """How many cells stand side by side: the largest of 1, 2, 4 that is not more than there are."""
    return max(width for width in _WIDTHS if width <= max(1, count))
