"""GPUs in words: how each pair is linked, what they are split into, and which errors they reported. Pure."""

from __future__ import annotations

import re
from collections import Counter

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from nodes.facts import Facts

#: Pairs that are listed of one kind; with more, their number stands in their place.
_LISTED = 12


def links(facts: Facts) -> str:
    """How the GPUs reach each other, a line for each kind of link with its pairs; "" where it is not known."""
    kinds: dict[str, list[str]] = {}
    for pair in facts.gpu_pairs:
        kinds.setdefault(pair.link, []).append(f"{pair.one}–{pair.other}")
    return "\n".join(f"{_link(kind)}: {_pairs(pairs, len(facts.gpu_pairs))}" for kind, pairs in sorted(kinds.items()))


def _pairs(pairs: list[str], every: int) -> str:
    if len(pairs) == every > 1:
        return _("all %(count)d pairs") % {"count": every}
    if len(pairs) > _LISTED:
        return _("%(count)d of %(all)d pairs") % {"count": len(pairs), "all": every}
    return ", ".join(pairs)


def _link(kind: str) -> str:
    nvlink = re.fullmatch(r"NV(\d+)", kind)
    if nvlink:
        count = int(nvlink[1])
        return ngettext("NVLink, %(count)d link", "NVLink, %(count)d links", count) % {"count": count}
    words = {
        "PIX": _("one PCIe switch"),
        "PXB": _("several PCIe switches"),
        "PHB": _("PCIe, by way of the processor"),
        "NODE": _("PCIe, by way of the same socket"),
        "SYS": _("from socket to socket"),
    }
    return f"{words[kind]} ({kind})" if kind in words else kind


def instances(facts: Facts, gpu: int) -> str:
    """What a GPU is split into: "2 × 3g.20gb with 20 GB each"; "" where no instance was made or seen."""
    counts = Counter((one.profile, one.gigabytes) for one in facts.mig_instances if one.gpu == gpu)
    said = [(_("%(count)d × %(profile)s with %(size)d GB each") if count > 1 else _("%(profile)s with %(size)d GB"))
            % {"count": count, "profile": profile, "size": size}
            for (profile, size), count in counts.items()]  # fmt: skip
    return ", ".join(said)


def split(facts: Facts) -> str:
    """A line for each GPU that is split, with its instances."""
    nothing = _("no instance")
    return "\n".join(f"GPU {gpu.index}: {instances(facts, gpu.index) or nothing}" for gpu in facts.gpus if gpu.mig)


def xids(facts: Facts) -> str:
    """Which Xid errors the driver reported since the start; that they cannot be read where that is so."""
    if facts.gpu_xid_error:
        what = _("the kernel's log cannot be read") if facts.uid == 0 else _("not readable without root")
        return f"{what} ({facts.gpu_xid_error})"
    by_bus = {gpu.bus: str(gpu.index) for gpu in facts.gpus if gpu.bus}
    told = [f"GPU {by_bus.get(one.bus, one.bus)}: {one.count} × Xid {one.xid}" for one in facts.gpu_xids]
    return ", ".join(told) if told or not facts.cuda else _("none since the start")
