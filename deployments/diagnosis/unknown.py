"""What is said of an error that no signature knows."""

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
