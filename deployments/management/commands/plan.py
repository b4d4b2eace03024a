"""``manage.py plan MODEL_DIR --hosts hosts.json``: plans without a database and without touching a host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from deployments.plan import BadInput, Plan, Wishes, plan
from deployments.plan.files import read_hosts, read_model
from deployments.plan.wishes import Value
from deployments.plan.words import count, gib, layout


class Command(BaseCommand):
    help = "Plans how vLLM would serve a model on the GPUs of some hosts, and says why."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="directory with the model's config.json")
        parser.add_argument("--hosts", type=Path, required=True, help="hosts.json: hosts, their GPUs, network_gbps")
        parser.add_argument(
            "--set",
            nargs="+",
            action="extend",
            default=[],
            metavar="KEY=VALUE",
            dest="wishes",
            help="a flag of vLLM, such as max-model-len=4096",
        )
        parser.add_argument("--json", action="store_true", help="print the plan as one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            wishes = Wishes.from_words(options["wishes"])
            hosts = read_hosts(options["hosts"])
            outcome = plan(read_model(options["model"]), hosts.hosts, wishes, hosts.network_gbps)
        except BadInput as error:
            raise CommandError(str(error), returncode=2) from error
        text = json.dumps(outcome.to_json(), ensure_ascii=False) if options["json"] else as_text(outcome)
        self.stdout.write(text)


def _flag(name: str, value: Value) -> str:
    """A flag as vLLM's command line has it: a switch stands alone."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"


def as_text(outcome: Plan) -> str:
    """The plan for people."""
    lines = [layout(*outcome.layout)] if outcome.layout else [_("This cannot be done.")]
    lines += outcome.problems
    lines += [outcome.nearest.sentence] if outcome.nearest else []
    lines += [
        _("  %(place)s, rank %(rank)d: %(weights)s of weights, %(kv)s of KV cache")
        % {
            "place": place.host if place.gpu is None else f"{place.host} GPU {place.gpu}",
            "rank": place.rank,
            "weights": gib(place.weights_bytes),
            "kv": gib(place.kv_bytes),
        }
        for place in outcome.placement
    ]
    if outcome.layout:
        lines.append(_("Room for %(tokens)s tokens a copy.") % {"tokens": count(outcome.kv_tokens)})
        lines.append(" ".join(_flag(name, value) for name, value in outcome.flags.items()))
    lines += [f"  {name}={value}" for name, value in outcome.environment.items()]
    lines += [f"• {reason}" for reason in outcome.reasons]
    lines += [f"  {layout(*other.layout)}: {other.why_not}" for other in outcome.alternatives]
    return "\n".join(map(str, lines))
