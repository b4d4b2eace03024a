"""A pasted list of servers, read: ``te[1-4]``, ``root@172.18.81.[126-129]:2222``, ``gpu-1 = user@host``. Pure.

One entry a line or between commas; ``#`` begins a comment. Each entry is judged on its own: the good become rows, the
bad say why. Nothing is expanded before it is counted, so a list can ask for `MOST` servers at most.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from types import MappingProxyType

from django.utils.translation import gettext as _

from nodes.names import is_address, is_ip, is_name, is_user, why_no_address

MOST = 256
NO_SERVERS: Mapping[tuple[str, str, int], str] = MappingProxyType({})
#: Characters; the longest name, user and address there can be fit well.
_LONGEST_ENTRY = 512
_RANGE = re.compile(r"\[([0-9,\s-]*)\]")
_SPAN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_ENTRY = re.compile(r"(?:(?P<name>[^=@]*)=)?\s*(?:(?P<user>[^@]*)@)?(?P<host>.*)", re.DOTALL)
_PORT = re.compile(r"(?P<host>\[[^\]]+\]|[^:]*):(?P<port>[^:]*)")


@dataclass(frozen=True)
class Row:
    """One server, as it will be registered. ``number`` is the entry it came from, counted from 1."""

    number: int
    typed: str
    name: str
    user: str
    address: str
    port: int


@dataclass(frozen=True)
class Bad:
    """An entry, or one server of its range, that cannot be right, and why."""

    number: int
    typed: str
    why: str


class _Wrong(ValueError):
    pass


#: User, address, port.
Where = tuple[str, str, int]


@dataclass
class _Seen:
    """What there is already: names, and servers with a word on where."""

    names: set[str]
    servers: dict[Where, str]


def parse(
    text: str, user: str = "", port: int = 22, taken: Collection[str] = (), known: Mapping[Where, str] = NO_SERVERS
) -> list[Row | Bad]:
    """Read the list. ``user`` and ``port`` are those of entries without.

    Names in ``taken`` are not given again; servers in ``known`` (→ their node's name) are registered already.
    """
    found: list[Row | Bad] = []
    registered = {where: _("Registered already, as %(node)s.") % {"node": node} for where, node in known.items()}
    seen = _Seen(set(taken), registered)
    for number, typed in enumerate(_entries(text), start=1):
        if len(found) >= MOST:
            found.append(Bad(number, typed[:80], _("At most %(most)d servers at once; this one and those after it "
                                                   "are left out.") % {"most": MOST}))
            break
        found += _judged(number, typed, (user, port), seen, MOST - len(found))
    return found


def _entries(text: str) -> Iterator[str]:
    """The entries of the list: lines, and what stands between commas outside of brackets."""
    for line in text.splitlines():
        for part in re.split(r",(?![^\[\]]*\])", line.partition("#")[0]):
            if part.strip():
                yield part.strip()


def _judged(
    number: int, typed: str, otherwise: tuple[str, int], seen: _Seen, room: int
) -> Iterator[Row | Bad]:
    try:
        servers = _servers(typed, otherwise, room)
    except _Wrong as wrong:
        yield Bad(number, typed[:80], str(wrong))
        return
    for name, login in servers:
        try:
            yield _row(number, typed, name, login, seen)
        except _Wrong as wrong:
            user, address, port = login
            yield Bad(number, f"{user}@{address}:{port}"[:80] if len(servers) > 1 else typed[:80], str(wrong))


def _servers(typed: str, otherwise: tuple[str, int], room: int) -> list[tuple[str, Where]]:
    """What the entry expands to: name or "", and login."""
    if len(typed) > _LONGEST_ENTRY:
        raise _Wrong(_("This is too long for one server."))
    match = _ENTRY.fullmatch(typed)
    assert match is not None  # everything in it is optional
    host, port = _host_and_port(match["host"].strip(), otherwise[1])
    user = otherwise[0] if match["user"] is None else match["user"].strip()
    if not is_user(user):
        raise _Wrong(_("%(user)r is not the name of a Linux user.") % {"user": user[:40]} if user
                     else _("It has no user. Type user@host, or a default user."))
    addresses = expand(host, room)
    names = expand(match["name"].strip(), room) if match["name"] is not None else [""] * len(addresses)
    if len(names) != len(addresses):
        raise _Wrong(_("%(names)d names for %(addresses)d addresses: both ranges have to be as long.")
                     % {"names": len(names), "addresses": len(addresses)})
    return [(name, (user, address, port)) for name, address in zip(names, addresses, strict=True)]


def _host_and_port(text: str, otherwise: int) -> tuple[str, int]:
    if is_ip(text):  # a bare IPv6 address has colons and no port
        return text, otherwise
    match = _PORT.fullmatch(text)
    host, typed = (match["host"], match["port"]) if match else (text, str(otherwise))
    if host.startswith("[") and is_ip(host[1:-1]):
        host = host[1:-1]
    if not re.fullmatch(r"[0-9]{1,5}", typed) or not 0 < int(typed) < 65536:
        raise _Wrong(_("A port is a number from 1 to 65535."))
    return host, int(typed)


def expand(text: str, room: int = MOST) -> list[str]:
    """``te[1-4]`` → te1 … te4; ``[08-11]`` keeps its width; several ranges are combined. Raises ValueError."""
    parts = _RANGE.split(text)  # plain, range, plain, …
    ranges = [[_span(span) for span in part.split(",")] for part in parts[1::2]]
    if prod(sum(last - first + 1 for first, last, _width in spans) for spans in ranges) > room:
        raise _Wrong(_("At most %(most)d servers at once.") % {"most": MOST})
    values = [
        [f"{number:0{width}d}" for first, last, width in spans for number in range(first, last + 1)]
        for spans in ranges]
    return ["".join(_interleaved(parts[::2], chosen)) for chosen in product(*values)]


def _interleaved(plain: list[str], chosen: tuple[str, ...]) -> Iterator[str]:
    for index, text in enumerate(plain):
        yield text
        yield from chosen[index : index + 1]


def _span(text: str) -> tuple[int, int, int]:
    """First, last and the width to pad to; 0 where the first has no leading zero."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise _Wrong(_("%(range)r is not a range. Type it like [1-4] or [1,3,5-7].") % {"range": f"[{text[:40]}]"})
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise _Wrong(_("The range [%(range)s] goes backwards.") % {"range": text.strip()})
    return first, last, len(match[1]) if match[1].startswith("0") and len(match[1]) > 1 else 0


def _row(number: int, typed: str, name: str, login: Where, seen: _Seen) -> Row:
    user, address, port = login
    if not is_address(address):
        raise _Wrong(why_no_address(address))
    if login in seen.servers:
        raise _Wrong(seen.servers[login])
    name = _checked_name(name, seen.names) if name else _made_name(login, seen.names)
    seen.names.add(name)
    seen.servers[login] = _("The same server as in entry %(number)d; registered once.") % {"number": number}
    return Row(number, typed, name, user, address, port)


def _checked_name(name: str, names: set[str]) -> str:
    if not is_name(name):
        raise _Wrong(_("%(name)r cannot be a node's name: letters, digits and hyphens, at most 63.")
                     % {"name": name[:80]})
    if name in names:
        raise _Wrong(_("A node named %(name)s exists already, or stands above.") % {"name": name})
    return name


def _made_name(login: Where, names: set[str]) -> str:
    """The host's own name; where two would have the same, as much of the login as tells them apart."""
    user, address, port = login
    whole = re.sub(r"[^A-Za-z0-9]+", "-", address).strip("-")
    short = whole if is_ip(address) else re.sub(r"[^A-Za-z0-9-]+", "-", address.partition(".")[0]).strip("-")
    told_apart = (short, whole, f"{whole}-{port}", f"{whole}-{port}-{re.sub('[^A-Za-z0-9]+', '-', user).strip('-')}")
    for name in told_apart:
        if is_name(name) and name not in names:
            return name
    raise _Wrong(_("A node of this name exists already. Give another one: name = user@host."))
