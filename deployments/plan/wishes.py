"""What the user wants, in vLLM's own flag names. What is not said is left to the plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from django.utils.translation import gettext as _

from deployments.plan.hosts import BadInput
from deployments.plan.quantisation import DTYPE_BYTES

Value = str | int | float | bool

_SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "q": "quantization",
    "device-memory-utilization": "gpu-memory-utilization",
}
_SUFFIXES = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
}  # vLLM's own reading
#: vLLM's own default on GPUs below 70 GiB. The plan says it aloud, so that the prediction holds on larger
#: ones too.
DEFAULT_SEQUENCES = 256


@dataclass(frozen=True)
class Wishes:
    """The flags that shape a plan, typed; None where the plan decides. ``flags`` holds all of them as given.

    ``replicas`` is data-parallel-size: independent copies on disjoint GPUs, each with its own server.
    """

    tensor: int | None = None
    pipeline: int | None = None
    replicas: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    utilization: float | None = None
    dtype: str | None = None
    kv_dtype: str | None = None
    quantization: str | None = None
    batched_tokens: int | None = None
    block_size: int = 16
    kv_cache_bytes: int | None = None
    eager: bool = False
    expert_parallel: bool = False
    flags: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def from_flags(cls, given: Mapping[str, Value]) -> Self:
        """Reads vLLM's flags; unknown ones are carried along unread. Raises `BadInput`."""
        flags = {flag_name(key): value for key, value in given.items()}
        length = flags.get("max-model-len")
        if str(length) in ("auto", "-1"):  # the plan does what auto would
            del flags["max-model-len"]
        return cls(
            tensor=_count(flags, "tensor-parallel-size"),
            pipeline=_count(flags, "pipeline-parallel-size"),
            replicas=_count(flags, "data-parallel-size"),
            max_model_len=_count(flags, "max-model-len"),
            max_num_seqs=_count(flags, "max-num-seqs"),
            utilization=_share(flags, "gpu-memory-utilization"),
            dtype=_dtype(flags, "dtype"),
            kv_dtype=_dtype(flags, "kv-cache-dtype"),
            quantization=str(flags["quantization"]) if flags.get("quantization") else None,
            batched_tokens=_count(flags, "max-num-batched-tokens"),
            block_size=_count(flags, "block-size") or 16,
            kv_cache_bytes=_count(flags, "kv-cache-memory-bytes"),
            eager=_switch(flags, "enforce-eager"),
            expert_parallel=_switch(flags, "enable-expert-parallel"),
            flags=flags,
        )

    @classmethod
    def from_words(cls, words: Iterable[str]) -> Self:
        """``["max-model-len=4096", "enforce-eager"]``, as typed after ``--set``. Raises `BadInput`."""
        pairs = [word.partition("=") for word in words]
        if any(not re.fullmatch(r"-{0,2}[A-Za-z][\w.-]*", key) for key, _eq, _value in pairs):
            raise BadInput(_("--set wants key=value with a flag name of vLLM, such as max-model-len=4096."))
        return cls.from_flags({key: _value(text) if equals else True for key, equals, text in pairs})

    @property
    def sequences(self) -> int:
        """How many requests are wished to run at once, over all copies."""
        return self.max_num_seqs or DEFAULT_SEQUENCES

    def without(self, *names: str) -> Wishes:
        """The same wishes, less some flags."""
        return Wishes.from_flags({k: v for k, v in self.flags.items() if k not in names})

    def having(self, **changes: Value) -> Wishes:
        """The same wishes with flags replaced; underscores stand for dashes."""
        return Wishes.from_flags({**self.flags, **{flag_name(k): v for k, v in changes.items()}})


def flag_name(text: str) -> str:
    """The one spelling of a flag: dashes, no leading ones, long form."""
    name = text.strip().lstrip("-").replace("_", "-")
    return _SHORT.get(name, name)


def _value(text: str) -> Value:
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"-?\d{0,18}\.\d{1,18}", text):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def _count(flags: Mapping[str, Value], name: str) -> int | None:
    if name not in flags:
        return None
    value = flags[name]
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)([kmgKMG]?)", str(value).strip())
    number = int(float(match[1]) * _SUFFIXES.get(match[2], 1)) if match else 0
    if isinstance(value, bool) or not 0 < number < 1 << 60 or (match and "." in match[1] and not match[2]):
        raise BadInput(_("%(flag)s must be a whole number above 0, not %(value)s.") % {"flag": name, "value": value})
    return number


def _share(flags: Mapping[str, Value], name: str) -> float | None:
    value = flags.get(name)
    if value is None:
        return None
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if isinstance(value, bool) or not 0 < share <= 1:
        raise BadInput(_("%(flag)s must be above 0 and at most 1, not %(value)s.") % {"flag": name, "value": value})
    return share


def _dtype(flags: Mapping[str, Value], name: str) -> str | None:
    value = str(flags.get(name, "auto"))
    if value == "auto":
        return None
    if value not in DTYPE_BYTES:
        raise BadInput(
            _("%(flag)s must be one of %(known)s, not %(value)s.")
            % {"flag": name, "known": ", ".join(DTYPE_BYTES), "value": value}
        )
    return value


def _switch(flags: Mapping[str, Value], name: str) -> bool:
    return str(flags.get(name, False)).lower() in ("true", "1", "yes")
