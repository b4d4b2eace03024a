"""What may be the name of a node, an address, a Linux user. Pure; one place for forms, pasted lists and stories."""

from __future__ import annotations

import ipaddress
import re

from django.utils.translation import gettext as _

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}\$?")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9._-]{0,30}[a-z0-9])?")
#: Words that are pages beside a node's own.
RESERVED = frozenset({"new", "approve"})


def is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and text not in RESERVED


def is_user(text: str) -> bool:
    return bool(_USER.fullmatch(text))


def is_label(text: str) -> bool:
    return bool(_LABEL.fullmatch(text))


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def is_address(text: str) -> bool:
    """An IP address or a host name; digits and dots alone are only the former."""
    return is_ip(text) or (bool(_HOSTNAME.fullmatch(text)) and not re.fullmatch(r"[\d.]+", text))


def why_no_address(text: str) -> str:
    """What is wrong with an address, in a sentence."""
    numbers = text.split(".")
    if re.fullmatch(r"[\d.]+", text) and len(numbers) == 4:
        wrong = next((number for number in numbers if not number or len(number) > 3 or int(number) > 255), "")
        if wrong:
            return _("%(number)s is not a number from 0 to 255.") % {"number": wrong[:20]}
    return _("%(address)r is neither a host name nor an IP address.") % {"address": text[:80]}
