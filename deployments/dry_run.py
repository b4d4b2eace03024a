"""Whether a node's vLLM takes a combination of options: it builds its configuration of them, and starts nothing.

Names of flags are compared at once (`deployments.flags`); what they mean together only vLLM knows. It is asked in a
task, which takes some seconds there, and the answer is kept for the same options over the same model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, NamedTuple

from celery import shared_task

from controlplane import streams
from controlplane.problems import Problem
from deployments.commands import checked, engine_options
from deployments.rollout.model_steps import directory
from nodes import preparation, tasks
from nodes.hosts import shared_host
from nodes.models import Node
from nodes.remote.command import python
from nodes.remote.host import ask

#: Builds vLLM's configuration from the options in its first argument, as the server would from its file. Its last line
#: is JSON: nothing in it where all is well. What it stumbles over otherwise is not about the options, and no answer.
PROGRAM = """
import contextlib, importlib, io, json, sys, tempfile
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from vllm.utils import FlexibleArgumentParser
for name in ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args"):
    try:
        launcher = importlib.import_module(name)
        break
    except ModuleNotFoundError:
        continue
parser = launcher.make_arg_parser(FlexibleArgumentParser())
validate = getattr(launcher, "validate_parsed_serve_args", lambda args: None)
from pydantic import ValidationError
from vllm.engine.arg_utils import AsyncEngineArgs
with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
    file.write(sys.argv[1])  # JSON is YAML
    file.flush()
    said, refused = io.StringIO(), ""
    try:
        with contextlib.redirect_stderr(said):
            args = parser.parse_args(["--config", file.name])
        try:
            validate(args)
        except (TypeError, ValueError) as error:
            refused = str(error)
        else:
            AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except SystemExit:
        refused = said.getvalue().strip().rpartition("\\n")[2].partition("error: ")[2]
    except ValidationError as error:
        first = error.errors()[0]
        refused = ".".join(map(str, first["loc"])) + ": " + first["msg"] if first["loc"] else first["msg"]
print("\\n" + json.dumps({"refused": refused}))
"""
#: Seconds that an answer is kept, that importing vLLM may take, and for which a node is asked one thing at a time.
_KEPT, _PATIENCE = 3600, 100
_LONGEST = 400  # characters of a reason


class Word(StrEnum):
    ASKED = "asked"  # a worker asks; look again
    TAKEN = "taken"
    REFUSED = "refused"
    UNKNOWN = "unknown"  # it could not say: its model is not there yet, for example


class Verdict(NamedTuple):
    """What the node's vLLM says of the options; ``why`` in its own words where it refuses."""

    word: Word
    why: str = ""


def of(node: Node, model: str, options: Mapping[str, Any], executor: str) -> Verdict | None:
    """What is known of these options; where nothing is, a worker asks. Never waits. None where nobody can be asked."""
    facts = node.facts
    if not facts.environment.verified:
        return None
    place = directory(model, preparation.site(node))
    asked = {"model": place, "distributed-executor-backend": executor, **engine_options(facts, checked(options))}
    text = json.dumps(asked, sort_keys=True)
    key = f"dry-run:{hashlib.sha256(f'{facts.environment.lock} {text}'.encode()).hexdigest()[:32]}"
    with suppress(streams.RedisError):
        kept = streams.client().get(key)
        if isinstance(kept, bytes):
            return Verdict(*json.loads(kept))
        if streams.client().set(f"dry-running:{node.pk}", 1, nx=True, ex=_PATIENCE):
            tasks.send(ask_vllm, node.pk, key, text)
        return Verdict(Word.ASKED)
    return None


@shared_task
def ask_vllm(node_id: int, key: str, text: str) -> None:
    """Ask the node's vLLM and keep the answer; one that does not come is kept, too, so that nobody asks in vain."""
    node = Node.objects.filter(pk=node_id).first()
    if node is None:
        return
    try:
        env = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        command = python(preparation.site(node).interpreter, PROGRAM, text, env=env)
        answer = answer_of(ask(shared_host(node), command, timeout=_PATIENCE).text)
    except (Problem, ValueError, KeyError, TypeError, AttributeError):
        answer = Verdict(Word.UNKNOWN)
    with suppress(streams.RedisError):
        streams.client().set(key, json.dumps(answer), ex=_KEPT if answer.word != Word.UNKNOWN else _PATIENCE)
        streams.client().delete(f"dry-running:{node_id}")


def answer_of(printed: str) -> Verdict:
    """What `PROGRAM` printed, after whatever vLLM said before. Raises ValueError, KeyError, … where it is no answer."""
    why = str(json.loads(printed.strip().rpartition("\n")[2])["refused"])
    plain = re.sub(r"^(Value error, |Assertion failed, |Error: )", "", " ".join(why.split()))[:_LONGEST]
    return Verdict(Word.REFUSED, plain) if plain else Verdict(Word.TAKEN)
