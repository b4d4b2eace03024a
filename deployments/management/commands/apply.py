"""``manage.py apply -f FILE``: makes deployments what a YAML file says; again is the same as once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments import revisions
from deployments.models import Deployment
from deployments.revisions import Applied, Line
from deployments.rollout import effects
from deployments.rollout.effects import Preview
from deployments.rollout.replacing import WAYS
from deployments.spec import LARGEST_FILE, Spec, from_yaml

#: Exit status for a file that cannot be read or says what cannot be; and where all is saved and something cannot run.
_BAD_INPUT, _NOT_RUN = 2, 1


class Command(BaseCommand):
    help = "Makes deployments what a YAML file says and prints what changed; servers of an older one are replaced."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("-f", "--file", required=True, metavar="FILE", help="the YAML file; - reads standard input")
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--start", action="store_true", help="roll out what does not run, too")
        how.add_argument("--no-restart", action="store_true", help="only save: what runs goes on as it is")
        how.add_argument("--check", action="store_true", help="only say what would be done, and whether there is a gap")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            specs = from_yaml(_text(options["file"]))
            for spec in specs:  # all of them before the first is touched
                revisions.check(spec)
            if options["check"]:
                return self.stdout.write("\n".join(line for spec in specs for line in _would(effects.preview(spec))))
            done = [self._apply(spec) for spec in specs]
        except Problem as problem:
            raise CommandError(str(problem), returncode=_BAD_INPUT) from problem
        if not options["no_restart"]:
            self._run(done, start=options["start"])

    def _apply(self, spec: Spec) -> Deployment:
        applied = revisions.apply(spec, None, _("manage.py apply"))
        self.stdout.write("\n".join(_said(applied)))
        return applied.deployment

    def _run(self, deployments: list[Deployment], *, start: bool) -> None:
        """Have all of them run as they are saved now; one that cannot does not keep the others from it."""
        problems = []
        for one in deployments:
            try:
                run = effects.take(one, None, start=start)
            except Problem as problem:
                problems.append(f"{one.name}: {problem}")
                continue
            if run is not None:
                replaced = run.story == "replace"
                said = _("The servers of %(name)s are replaced.") if replaced else _("%(name)s is rolled out.")
                self.stdout.write(said % {"name": one.name})
        if problems:
            raise CommandError("\n".join(problems), returncode=_NOT_RUN)


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
    return [first, *map(_line, applied.lines)]


def _would(told: Preview) -> list[str]:
    words = {"created": _("would be created"), "changed": _("would be changed"), "unchanged": _("unchanged")}
    way = [f"  {WAYS[told.way]}"] if told.way else []
    return [f"{told.name}: {words[told.what]}", *map(_line, told.lines), *way]


def _line(line: Line) -> str:
    old, new = (_("not set") if value is None else value for value in (line.old, line.new))
    return f"  {line.name}: {old} → {new}"
