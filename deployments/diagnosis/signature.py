"""What a known failure looks like in a log, why it happens and what to do: the type of the data. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from types import MappingProxyType

from django.utils.functional import Promise


class Kind(IntEnum):
    """What a text says about a failure. When a log has several, the smallest is the one to tell."""

    CAUSE = 0  # the reason itself
    UNKNOWN = 1  # an exception that no signature knows
    CONSEQUENCE = 2  # something broke because of something else
    STALL = 3  # nothing failed yet, but nothing goes on either
    WRAPPER = 4  # says only that it failed


@dataclass(frozen=True)
class Signature:
    """A known failure.

    ``patterns`` are regular expressions for one line's text, without the tags before it. Their named groups,
    and ``host``, are the placeholders of ``cause``, ``fix`` and the values of ``options``: options of vLLM
    that mend it. A stall counts when it was said ``times`` times since the last text that matches ``until``.
    """

    id: str
    patterns: tuple[str, ...]
    cause: Promise
    fix: Promise
    kind: Kind = Kind.CAUSE
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    until: str = ""
    times: int = 1

    @cached_property
    def texts(self) -> tuple[tuple[str, re.Pattern[str]], ...]:
        """Each pattern after a literal that its lines contain, which is found a hundred times faster."""
        return tuple((longest_literal(pattern), re.compile(pattern)) for pattern in self.patterns)


def longest_literal(pattern: str) -> str:
    """The longest text that every match of the pattern contains.

    For patterns without nested groups. What stands in ``(a|b)``, ``(a)?`` or ``a*`` may not be there.
    """
    bare = re.sub(r"\\.|\[[^\]]*\]|\{[^}]*\}", "\0", pattern)
    bare = re.sub(r"\([^()]*\|[^()]*\)|\([^()]*\)[?*]", "\0", bare)
    bare = re.sub(r"\(\?(?:P<\w+>|:)|.[?*]", "\0", bare)
    return max(re.split(r"[\0^$.|+()]", bare), key=len)
