"""``manage.py watch``: follow every node's logs, samples and exits until told to stop."""

import signal
from typing import Any

from django.core.management.base import BaseCommand
from django.utils.translation import gettext as _

from nodes.watch import Watch


class Command(BaseCommand):
    help = _("Watch the nodes: logs, memory, ends of jobs. Runs until stopped; several may run and share the nodes.")

    def handle(self, *args: Any, **options: Any) -> None:
        watch = Watch()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: watch.stop())
        watch.run()
