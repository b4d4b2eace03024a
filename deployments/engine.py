"""What is asked of a replica's vLLM server over HTTP: does it list its model, does it generate, can it chat."""

from __future__ import annotations

from typing import Any

import httpx
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments.models import Replica
from deployments.upstream import base_url

_PROMPT = "The capital of France is"


def ask(replica: Replica, method: str, path: str, timeout: float, json: Any = None) -> httpx.Response:
    """One request with the server's own key. Raises `httpx.HTTPError`."""
    headers = {"Authorization": f"Bearer {replica.deployment.api_key.reveal()}"}
    with httpx.Client(base_url=base_url(replica), timeout=timeout, trust_env=False) as client:
        return client.request(method, path, headers=headers, json=json)


def answers(replica: Replica) -> bool:
    """Whether the server is up and lists the model."""
    try:
        answer = ask(replica, "GET", "/v1/models", timeout=3)
        return answer.status_code == 200 and replica.deployment.name in {card["id"] for card in answer.json()["data"]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError):  # nobody, or something else that speaks HTTP
        return False


def prompt(replica: Replica, tokens: int, timeout: float) -> httpx.Response:
    """The answer to a short completion. Raises `httpx.HTTPError`."""
    question = {"model": replica.deployment.name, "prompt": _PROMPT, "max_tokens": tokens, "temperature": 0}
    return ask(replica, "POST", "/v1/completions", timeout, question)


def prove(replica: Replica) -> float:
    """One real prompt: /health and /v1/models answer before it is known that the model can generate.

    Returns the seconds it took. Raises `Problem` when no answer came.
    """
    try:
        answer = prompt(replica, 8, timeout=60)
    except httpx.TransportError as error:
        raise Problem(
            _("The server started but did not answer a prompt: %(error)s.") % {"error": error or type(error).__name__},
            _("Its log says what happened to the engine."),
        ) from error
    if answer.status_code != 200:
        raise Problem(
            _("The server started but refused a prompt with status %(status)d: %(text)s")
            % {"status": answer.status_code, "text": answer.text[:300]},
            _("Its log says more."),
        )
    return answer.elapsed.total_seconds()


def chats(replica: Replica) -> bool | None:
    """Whether the model has a chat template; None when it did not say.

    A base model has none and refuses to chat; the playground asks it for completions instead.
    """
    question = {"model": replica.deployment.name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    try:
        answer = ask(replica, "POST", "/v1/chat/completions", 60, question)
    except httpx.TransportError:
        return None
    refused = answer.status_code == 400 and "chat template" in answer.text
    return not refused if refused or answer.status_code == 200 else None
