"""Why a server did not start, or died: signatures (data), and `match` from a log to cause and fix. Pure."""

from deployments.diagnosis.matching import SIGNATURES, Diagnosis, match

__all__ = ["SIGNATURES", "Diagnosis", "match"]
