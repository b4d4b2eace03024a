"""``manage.py apply -f FILE``: makes deployments what a YAML file says; again is the same as once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments import exchange, revisions, rollout
from deployments.revisions import Applied
from deployments.spec import LARGEST_FILE, from_yaml
from deployments.states import AT_REST, SERVING

#: Exit status for a file that cannot be read or says what cannot be.
_BAD_INPUT = 2


class Command(BaseCommand):
    help = "Creates or changes deployments as a YAML file says, and prints what changed."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("-f", "--file", required=True, metavar="FILE", help="the YAML file; - reads standard input")
        parser.add_argument("--start", action="store_true", help="roll out what rests, replace what was changed")
        parser.add_argument("--check", action="store_true", help="only say whether the file could be applied")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            specs = from_yaml(_text(options["file"]))
            for spec in specs:  # all of them before the first is touched
                revisions.check(spec)
            for spec in specs if not options["check"] else ():
                applied = revisions.apply(spec, None, _("manage.py apply"))
                self.stdout.write("\n".join(_said(applied)))
                if options["start"]:
                    self._start(applied)
        except Problem as problem:
            raise CommandError(str(problem), returncode=_BAD_INPUT) from problem

    def _start(self, applied: Applied) -> None:
        """Roll out what is at rest, replace what runs an older revision, leave alone what is as it should be."""
        found = applied.deployment.fresh()
        if found.state in AT_REST:
            rollout.start(found, None)
            self.stdout.write(_("%(name)s is rolled out.") % {"name": found.name})
        elif applied.what == "changed" and found.state in SERVING:
            exchange.replace(found, None)
            self.stdout.write(_("The servers of %(name)s are replaced.") % {"name": found.name})


def _text(name: str) -> str:
    """The file's text. Raises `Problem`; reads at most a byte more than is taken."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(LARGEST_FILE + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(LARGEST_FILE + 1)
        return data.decode()
    except OSError as error:
        why = error.strerror or error
        raise Problem(_("%(path)s cannot be read: %(why)s.") % {"path": name, "why": why}) from error
    except ValueError as error:
        raise Problem(_("%(path)s is not text in UTF-8.") % {"path": name}) from error


def _said(applied: Applied) -> list[str]:
    words = {"created": _("created"), "changed": _("changed"), "unchanged": _("unchanged")}
    first = f"{applied.deployment.name}: {words[applied.what]}"
    if applied.what != "unchanged":
        first += " (" + _("revision %(number)d") % {"number": applied.deployment.revision} + ")"
    unset = _("not set")
    lines = ((line.name, *(unset if value is None else value for value in line[1:])) for line in applied.lines)
    return [first, *(f"  {name}: {old} → {new}" for name, old, new in lines)]
