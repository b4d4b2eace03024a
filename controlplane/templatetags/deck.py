"""What every template may use: icons, sizes, times, and the one place where a state gets its look."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from django import template
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy, pgettext_lazy

from controlplane.roles import ADMIN, OPERATOR, VIEWER, has_role, role_of

register = template.Library()
GIB = 1024**3


class Look(NamedTuple):
    """How a state is shown: always a word, an icon and a tone together."""

    word: str | Promise
    icon: str
    tone: str


class HasMemory(Protocol):
    @property
    def memory_total_mib(self) -> int: ...


LOOKS = {
    "new": Look(pgettext_lazy("state", "new"), "new", "calm"),
    "checking": Look(pgettext_lazy("state", "checking"), "checking", "busy"),
    "preparing": Look(pgettext_lazy("state", "preparing"), "preparing", "busy"),
    "ready": Look(pgettext_lazy("state", "ready"), "ready", "ok"),
    "removing": Look(pgettext_lazy("state", "removing"), "stopping", "busy"),
    "unreachable": Look(pgettext_lazy("state", "unreachable"), "unreachable", "warn"),
    "failed": Look(pgettext_lazy("state", "failed"), "failed", "bad"),
    "draft": Look(pgettext_lazy("state", "draft"), "draft", "calm"),
    "rolling_out": Look(pgettext_lazy("state", "rolling out"), "rolling", "busy"),
    "degraded": Look(pgettext_lazy("state", "degraded"), "degraded", "warn"),
    "draining": Look(pgettext_lazy("state", "draining"), "stopping", "busy"),
    "stopping": Look(pgettext_lazy("state", "stopping"), "stopping", "busy"),
    "stopped": Look(pgettext_lazy("state", "stopped"), "stopped", "calm"),
    "waiting": Look(pgettext_lazy("state", "waiting"), "new", "calm"),
    "starting": Look(pgettext_lazy("state", "starting"), "preparing", "busy"),
    "running": Look(pgettext_lazy("state", "running"), "preparing", "busy"),
    "asking": Look(pgettext_lazy("state", "asking"), "checking", "busy"),
    "offered": Look(pgettext_lazy("state", "waits for approval"), "lock", "warn"),
    "approved": Look(pgettext_lazy("state", "registering"), "preparing", "busy"),
    "registered": Look(pgettext_lazy("state", "registered"), "check", "ok"),
    "done": Look(pgettext_lazy("state", "done"), "check", "ok"),
    "skipped": Look(pgettext_lazy("state", "skipped"), "skip", "ok"),
    "exited": Look(pgettext_lazy("state", "ended"), "check", "calm"),
    "lost": Look(pgettext_lazy("state", "lost"), "failed", "bad"),
}
ROLE_NAMES = {
    VIEWER: pgettext_lazy("role", "viewer"),
    OPERATOR: pgettext_lazy("role", "operator"),
    ADMIN: pgettext_lazy("role", "admin"),
}
#: A length of time in its two largest units; static/js/times.js counts on in the same words.
_LENGTHS = {
    "days": gettext_lazy("%(d)d d %(h)d h"),
    "hours": gettext_lazy("%(h)d h %(m)d min"),
    "minutes": gettext_lazy("%(m)d min %(s)d s"),
    "seconds": gettext_lazy("%(s)d s"),
}
_TURNING = frozenset({"preparing", "rolling", "stopping"})


@register.simple_tag
def icon(name: str, extra: str = "") -> SafeString:
    """``{% icon "plus" %}``: a symbol of static/icons.svg, hidden from screen readers."""
    turn = " spin" if name in _TURNING or extra == "spin" else ""
    href = f"{static('icons.svg')}#i-{name}"
    return format_html('<svg class="ico{}" aria-hidden="true"><use href="{}"/></svg>', turn, href)


@register.simple_tag
def state(thing: Any, size: str = "") -> SafeString:
    """``{% state node %}`` or ``{% state "ready" "lg" %}``: word, icon and tone of a state."""
    look = LOOKS[str(getattr(thing, "state", thing))]
    large = " is-lg" if size == "lg" else ""
    return format_html('<span class="state tone-{}{}">{}{}</span>', look.tone, large, icon(look.icon), look.word)


@register.filter
def look(thing: Any) -> Look:
    """The look of a state, for a template that lays it out itself."""
    return LOOKS[str(getattr(thing, "state", thing))]


@register.filter
def cause(reason: str) -> str:
    """What happened, of a reason that was kept (see `Problem.told`)."""
    return reason.partition("\n")[0]


@register.filter
def remedy(reason: str) -> str:
    """What to do next, of a reason that was kept; empty where it does not say."""
    return reason.partition("\n")[2]


@register.filter
def gib(size: float | None) -> str:
    """Bytes as GiB with one decimal, without the unit: ``12.3``; whole numbers from 100 on."""
    if size is None:
        return "–"
    amount = size / GIB
    return f"{amount:.0f}" if amount >= 99.95 else f"{amount:.1f}"


@register.filter
def mib_as_gib(size: float | None) -> str:
    """MiB as GiB, as `gib`."""
    return gib(None if size is None else size * 1024 * 1024)


@register.filter
def total_mib(gpus: Sequence[HasMemory]) -> int:
    """The memory of several GPUs together, in MiB."""
    return sum(gpu.memory_total_mib for gpu in gpus)


@register.filter
def duration(value: timedelta | float | None) -> str:
    """A length of time in its two largest units: ``2 d 4 h``, ``1 min 20 s``, ``9 s``."""
    if value is None:
        return ""
    seconds = max(0, round(value.total_seconds() if isinstance(value, timedelta) else value))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    unit = "days" if days else "hours" if hours else "minutes" if minutes else "seconds"
    return str(_LENGTHS[unit] % {"d": days, "h": hours % 24, "m": minutes % 60, "s": seconds % 60})


@register.simple_tag
def lengths() -> SafeString:
    """The words of `duration` as data attributes, for the browser to count on."""
    return format_html_join("", ' data-{}="{}"', _LENGTHS.items())


@register.filter
def since(moment: datetime | None) -> str:
    """How long ago a moment was, as `duration` says it; the browser counts on, each second."""
    if moment is None:
        return ""
    ago = timezone.now() - moment
    # Seconds, not only the moment: the browser's clock may differ from the server's.
    seconds = max(0, round(ago.total_seconds()))
    return format_html('<time datetime="{}" data-ago="{}">{}</time>', moment.isoformat(), seconds, duration(ago))


@register.filter
def took(thing: Any) -> str:
    """How long a run, step or job took, or takes until now; empty before it started."""
    begun = getattr(thing, "started_at", None) or getattr(thing, "created_at", None)
    if begun is None or str(thing.state) in ("waiting", "skipped"):
        return ""
    ended = getattr(thing, "finished_at", None) or getattr(thing, "ended_at", None)
    return duration(ended - begun) if ended else since(begun)


@register.filter
def can(user: Any, role: str) -> bool:
    """``{% if request.user|can:"operator" %}``"""
    return has_role(user, role)


@register.filter
def role_name(user: Any) -> str | Promise:
    """The user's role as people read it."""
    return ROLE_NAMES[role_of(user)]


@register.filter
def join_index(kind: str, index: int) -> str:
    """``"gpu:"|join_index:0`` → ``gpu:0``: the name of a metric in samples.js."""
    return f"{kind}{index}"


@register.filter
def tone(level: str) -> str:
    """The tone of a message of Django's messages framework."""
    return {"success": "ok", "warning": "warn", "error": "bad"}.get(level, "busy")


@register.filter
def tone_icon(level: str) -> str:
    return {"success": "ready", "warning": "warn", "error": "failed"}.get(level, "info")


@register.simple_tag(takes_context=True)
def nav(context: template.Context, name: str, label: str) -> SafeString:
    """``{% nav "nodes" _("Nodes") %}``: a link of the main navigation, marked on the pages below it."""
    address = reverse(name)
    path = context["request"].path
    here = path == address or (address != "/" and path.startswith(address))
    current = format_html(' aria-current="{}"', "page" if path == address else "true") if here else ""
    return format_html('<a href="{}"{}>{}</a>', address, current, label)


@register.filter
def word(thing: Any) -> str | Promise:
    """The word alone, where an icon has no place (an option of a select)."""
    return look(thing).word
