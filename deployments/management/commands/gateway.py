"""``manage.py gateway``: the gateway in a process of its own."""

from __future__ import annotations

from typing import Any

import uvicorn
from django.core.management.base import BaseCommand, CommandParser

from deployments.gateway.http import BoundedHttp


class Command(BaseCommand):
    requires_system_checks = ["quarterdeck"]  # the others import all pages
    help = "Serve /v1, the OpenAI-compatible gateway, without pages."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: loopback)")
        parser.add_argument("--port", type=int, default=8100, help="default: 8100")

    def handle(self, *args: Any, **options: Any) -> None:
        uvicorn.run(
            "deployments.gateway.app:gateway",
            host=options["host"],
            port=options["port"],
            http=BoundedHttp,
            access_log=False,  # a line for each request would cost more than it tells
            log_config=None,
            proxy_headers=False,
            server_header=False,
            ws_per_message_deflate=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=30,
        )
