"""vLLM's flags: what an installed vLLM accepts, what became of those that old articles name, and what was meant. Pure.

Which flags exist is asked of the vLLM on the node (`deployments.accepted`). What a gone flag meant is said here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from deployments.commands import OWN_OPTIONS
from deployments.spec import did_you_mean

Text = str | Promise

#: Asks vLLM's own parser. Prints one JSON object in its last line; runs with the environment's Python, 10 to 15 s.
PROGRAM = """
import importlib, importlib.metadata, json
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from vllm.utils import FlexibleArgumentParser
for name in ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args"):
    try:
        parser = importlib.import_module(name).make_arg_parser(FlexibleArgumentParser())
        break
    except ModuleNotFoundError:
        continue
options = {}
for action in parser._actions:
    for option in action.option_strings:
        options[option] = [str(choice) for choice in action.choices] if action.choices else []
print("\\n" + json.dumps({"version": importlib.metadata.version("vllm"), "options": options}))
"""


class Accepted(NamedTuple):
    """What one version of vLLM accepts: names without dashes in front, and the choices of those that have some."""

    version: str
    choices: Mapping[str, tuple[str, ...]]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Accepted:
        """As `PROGRAM` prints it. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
        found = {str(name).lstrip("-"): tuple(map(str, known)) for name, known in data["options"].items()}
        if not found:
            raise ValueError("no options")
        return cls(str(data["version"]), found)

    @property
    def names(self) -> list[str]:
        """The long names that may be set, in order."""
        return sorted(name for name in self.choices if len(name) > 2 and name not in OWN_OPTIONS)

    @property
    def listed(self) -> list[tuple[str, tuple[str, ...]]]:
        """Names with their choices, for a page. That a switch has a negated form, too, goes without saying."""
        return [(name, self.choices[name]) for name in self.names if not self._negates(name)]

    def _negates(self, name: str) -> bool:
        return name.startswith("no-") and name.removeprefix("no-") in self.choices


class Gone(NamedTuple):
    """A flag that vLLM had; where it cannot be translated it is dropped if that is harmless."""

    why: Text
    harmless: bool = True


_NO_EFFECT = gettext_lazy("It has no effect any more.")
GONE: Mapping[str, Gone] = {
    "disable-log-requests": Gone(gettext_lazy("Not logging requests is the default now.")),
    "worker-use-ray": Gone(gettext_lazy("Quarterdeck chooses the executor.")),
    "engine-use-ray": Gone(gettext_lazy("Quarterdeck chooses the executor.")),
    "use-v2-block-manager": Gone(_NO_EFFECT),
    "num-scheduler-steps": Gone(_NO_EFFECT),
    "disable-frontend-multiprocessing": Gone(_NO_EFFECT),
    "swap-space": Gone(gettext_lazy("vLLM does not swap to the host's memory any more.")),
    "device": Gone(gettext_lazy("vLLM finds the device by itself.")),
    "max-seq-len-to-capture": Gone(gettext_lazy("vLLM decides by itself what it captures in CUDA graphs.")),
    "cuda-graph-sizes": Gone(
        gettext_lazy("Write each size, as in cudagraph-capture-sizes=[1, 2, 4]."), False),
    "task": Gone(gettext_lazy("It is called runner now."), False),
    "guided-decoding-backend": Gone(
        gettext_lazy("It is a part of structured-outputs-config now."), False),
    "rope-scaling": Gone(gettext_lazy("It is a part of hf-overrides now."), False),
    "rope-theta": Gone(gettext_lazy("It is a part of hf-overrides now."), False),
}
_RUNNERS = {"generate": "generate", "draft": "draft", "transcription": "generate"}
_SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "q": "quantization",
    "O": "optimization-level",
}


@dataclass(frozen=True)
class Looked:
    """The options as they go to vLLM, what was changed in them, and what is wrong."""

    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = field(default=())


def looked_at(options: Mapping[str, Any], accepted: Accepted | None) -> Looked:
    """Options compared with what the node's vLLM accepts; without ``accepted`` only what is known to be gone.

    A flag that is gone is translated or left out with a note where that is safe, and a problem where it is not.
    """
    kept: dict[str, Any] = {}
    notes: list[str] = []
    problems: list[Problem] = []
    for typed, value in options.items():
        name = _SHORT.get(typed, typed)
        try:
            kept |= _one(name, value, accepted, notes)
        except Problem as problem:
            problems.append(problem)
    return Looked(kept, tuple(notes), tuple(problems))


def _one(name: str, value: Any, accepted: Accepted | None, notes: list[str]) -> dict[str, Any]:
    exists = name in accepted.choices if accepted else name not in GONE
    if exists:
        _check_choice(name, value, accepted)
        return {name: value}
    if name in GONE:
        return _gone(name, value, GONE[name], notes)
    assert accepted is not None
    raise Problem(
        _("vLLM %(version)s has no flag %(name)s.") % {"version": accepted.version, "name": name},
        did_you_mean(name, accepted.names) or _("Leave it out, or look its name up in the list of all flags."),
    )


def _gone(name: str, value: Any, gone: Gone, notes: list[str]) -> dict[str, Any]:
    new = _translated(name, value)
    if new:
        written = ", ".join(f"{key}={_shown(item)}" for key, item in new.items())
        notes.append(_("%(name)s is gone: it is passed on as %(new)s.") % {"name": name, "new": written})
        return new
    if gone.harmless:
        notes.append(_("%(name)s is gone and is left out. %(why)s") % {"name": name, "why": gone.why})
        return {}
    raise Problem(_("vLLM has no flag %(name)s any more.") % {"name": name}, str(gone.why))


def _translated(name: str, value: Any) -> dict[str, Any]:
    """The gone flag in today's words; empty where that cannot be said without guessing."""
    match name:
        case "task":
            return {"runner": _RUNNERS.get(str(value), "pooling")} if value not in ("auto", True) else {}
        case "guided-decoding-backend" if isinstance(value, str):
            return {"structured-outputs-config": {"backend": value.partition(":")[0]}}
        case "cuda-graph-sizes" if isinstance(value, list) and len(value) > 1:
            return {"cudagraph-capture-sizes": value}
        case "rope-scaling" if isinstance(value, dict):
            return {"hf-overrides": {"rope_parameters": value}}
        case "rope-theta" if isinstance(value, int | float) and not isinstance(value, bool):
            return {"hf-overrides": {"rope_parameters": {"rope_theta": value}}}
    return {}


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_choice(name: str, value: Any, accepted: Accepted | None) -> None:
    choices = accepted.choices.get(name, ()) if accepted else ()
    if choices and isinstance(value, str) and value not in choices:
        raise Problem(
            _("%(name)s cannot be %(value)s.") % {"name": name, "value": value[:80]},
            did_you_mean(value, choices) or _("It is one of %(choices)s.") % {"choices": ", ".join(choices[:20])},
        )
