"""Schemathesis over the REST API: whatever is sent, the answer is one the document names, and never a server error."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any, NoReturn

import pytest
import schemathesis
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from controlplane.problems import Problem
from controlplane.rest import api
from deployments import planning
from deployments.models import Deployment
from nodes import registration
from nodes.candidates import Batch, SignIn
from nodes.models import Cluster, Job, Node, Run
from tests.test_api import Program

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection,
]
#: Text longer than this is not made: tens of thousands of characters, just to be too many, took most of the time.
LONG = 1024


def without_long_text(part: Any) -> Any:
    """A document that does not bound text which may be long."""
    if isinstance(part, list):
        return [without_long_text(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {
        name: without_long_text(value) for name, value in part.items()
        if not (name == "maxLength" and isinstance(value, int) and value > LONG)
    }


DOCUMENT = without_long_text(api.get_openapi_schema(path_prefix="/api/"))
OPERATIONS = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]
JOB = uuid.UUID(int=7)
#: Of each operation and kind of data. API_EXAMPLES=500 looks further, and elsewhere each time.
EXAMPLES = int(os.environ.get("API_EXAMPLES", "6"))
SAME_EACH_TIME = "API_EXAMPLES" not in os.environ
THERE: dict[str, Any] = {
    "nodes": "gpu-1", "clusters": "c", "deployments": "tiny", "runs": 1, "keys": 1, "jobs": str(JOB), "batches": 1
}


@pytest.fixture
def program(db: None, monkeypatch: pytest.MonkeyPatch) -> Program:
    """An admin's key, something of each kind to ask about, and no way out to any server."""

    def away(*_: object) -> NoReturn:
        raise Problem("The server cannot be reached.", "Try again.")

    monkeypatch.setattr(registration, "offered_key", away)
    monkeypatch.setattr(registration, "register", away)
    monkeypatch.setattr(planning, "model_files", away)
    node = Node.objects.create(name="gpu-1", kind=Node.Kind.LOCAL, address="127.0.0.1", root="/nowhere")
    cluster = Cluster.objects.create(name="c", head=node)
    Deployment.objects.create(name="tiny", model="/m", cluster=cluster, port=20900)
    Job.objects.create(pk=JOB, node=node, name="talk", state="exited", log_size=0)
    Run.objects.create(pk=1, story="check", about=node.subject, state="done")
    program = Program("admin")
    Batch.objects.create(pk=1, created_by=program.user, sign_in=SignIn().seal()).candidates.create(name="te1", pk=1)
    return program


@pytest.fixture(autouse=True)
def one_connection() -> Iterator[None]:
    """The connection stays open between requests, as it has the test's transaction: so does Django's own client."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@cache
def schema_of_all() -> Any:
    """Made once: it reads all our modules for constants to try."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.app = WSGIHandler()
    return schema


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_is_too_much(method: str, path: str, mode: GenerationMode, program: Program) -> None:
    operation = schema_of_all()[path][method.upper()]
    there = THERE.get(path.partition("/{")[0].rpartition("/")[2])
    known = {"name": there, "id": there, "number": 1}
    parts = {part: value for part, value in known.items() if f"{{{part}}}" in path}
    drawn: list[Any] = [operation.as_strategy(generation_mode=mode)]
    if parts:
        drawn.append(operation.as_strategy(generation_mode=mode, path_parameters=parts))

    @given(case=st.one_of(drawn))
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=SAME_EACH_TIME,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )
    def ask(case: Case[Any]) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {program.plain}"}, checks=CHECKS)

    ask()
