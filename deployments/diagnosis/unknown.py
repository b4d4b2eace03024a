"""What is said where no text of the log is the reason: of an error that is not known, of a worker that was killed."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from deployments.diagnosis.signature import Kind, Signature

UNKNOWN = Signature(
    "unknown-error",
    (),
    _("The engine stopped with an error that Quarterdeck does not know: %(error)s"),
    _("Read the lines before it in the log. If it is about memory, lower max-model-len and max-num-seqs."),
    kind=Kind.UNKNOWN,
)

#: Of a worker whose end is all that the log says, once it is known which one it was.
KILLED = Signature(
    "worker-killed",
    (),
    _(
        "Worker %(worker)s of the engine, process %(pid)s on %(host)s, died or was lost with its host, and "
        "the log does not say why."
    ),
    _(
        'Look at the node\'s memory at that time, and for "Out of memory" or "Xid" in its kernel log '
        "(dmesg)."
    ),
    kind=Kind.CONSEQUENCE,
)
