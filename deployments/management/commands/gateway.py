"""``manage.py gateway``: the gateway alone, for a process of its own beside the web process."""

from __future__ import annotations

from typing import Any

import uvicorn
from django.core.management.base import BaseCommand, CommandParser


class Command(BaseCommand):
    help = "Serve /v1, the OpenAI-compatible gateway, without the pages."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: loopback)")
        parser.add_argument("--port", type=int, default=8100, help="the port to listen on (default: 8100)")

    def handle(self, *args: Any, **options: Any) -> None:
        uvicorn.run(
            "deployments.gateway.app:gateway",
            host=options["host"],
            port=options["port"],
            access_log=False,  # usage is counted; a line for each request would cost more than the request
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=30,
        )
