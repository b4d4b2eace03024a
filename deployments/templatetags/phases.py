"""The phase of a start, as people read it."""

from __future__ import annotations

from django import template
from django.utils.functional import Promise

from deployments.rollout.phases import PHASES

register = template.Library()


@register.filter
def phase_name(phase: str) -> str | Promise:
    return PHASES.get(phase, phase)
