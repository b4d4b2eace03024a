"""Quarterdeck's own figures in Prometheus's format: nodes, GPUs, deployments, servers, gateway, alerts, own health.

Read from the database and Redis when it is asked; with Redis away the rest is still told, and that it is away.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import cast

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db.models import Count, Sum
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane import streams
from deployments.models import Alert, Deployment, Replica, Usage
from deployments.states import SERVING
from nodes.models import Node
from nodes.states import NodeState
from nodes.telemetry import store
from nodes.telemetry.sample import INDEX, LOAD, POWER, TEMPERATURE, TOTAL, USED, Sample

MIB = 2**20
#: A server's figures that are older say nothing of now.
FRESH = 30.0
_QUEUE = "celery"

Rows = Iterable[tuple[tuple[str, ...], float | None]]


@login_not_required
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """For Prometheus, which shows the token of this installation (``METRICS_TOKEN``, else ``var/metrics.token``)."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), settings.METRICS_TOKEN.encode()):
        return HttpResponse("401: send the token of var/metrics.token as a bearer token\n", status=401,
                            content_type="text/plain", headers={"WWW-Authenticate": "Bearer"})
    return HttpResponse(exposition(), content_type=CONTENT_TYPE_LATEST)


def exposition() -> bytes:
    registry = CollectorRegistry()
    registry.register(_Everything())
    return generate_latest(registry)


class _Everything(Collector):
    def collect(self) -> Iterator[Metric]:
        began = time.time()
        samples: dict[int, Sample] = {}
        others: dict[str, Sample] = {}
        nodes = {node.pk: node for node in Node.objects.select_related("cluster").defer("facts_json")}
        reached = False
        with suppress(streams.RedisError, OSError):
            samples, others = store.newest_of_nodes(list(nodes)), store.others()
            reached = True
        yield from _nodes(nodes, samples, began)
        yield from _gpus(nodes, samples, began)
        yield from _deployments()
        yield from _servers(others, began)
        yield from _gateway()
        yield from _alerts()
        yield from _health(reached, began)

    def describe(self) -> Iterable[Metric]:
        return ()  # asked at registration: nothing is read for that


def _gauge(name: str, help_text: str, labels: tuple[str, ...], rows: Rows) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"quarterdeck_{name}", help_text, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def _nodes(nodes: Mapping[int, Node], samples: Mapping[int, Sample], now: float) -> Iterator[Metric]:
    label = ("node", "cluster")
    names = {pk: (node.name, node.cluster.name if node.cluster else "") for pk, node in nodes.items()}
    fresh = {pk: sample for pk, sample in samples.items() if now - sample["t"] < FRESH}
    up = {pk: float(pk in fresh and node.state != NodeState.UNREACHABLE) for pk, node in nodes.items()}
    yield _gauge("node_up", "Whether the node can be reached and speaks", label,
                 ((names[pk], value) for pk, value in up.items()))
    yield _gauge("node_state", "The state of the node: 1 beside its name", ("node", "state"),
                 (((node.name, node.state), 1.0) for node in nodes.values()))
    yield _gauge("node_sample_age_seconds", "Since the node last spoke", label,
                 ((names[pk], max(0.0, now - sample["t"])) for pk, sample in samples.items()))
    yield _gauge("node_cpu_ratio", "Processors in use, 0 to 1", label,
                 ((names[pk], None if one["cpu"] is None else one["cpu"] / 100) for pk, one in fresh.items()))
    for name, at, what in (("used", 0, "in use"), ("total", 1, "there is")):
        for kind, word in (("mem", "memory"), ("disk", "disk")):
            rows = ((names[pk], sample[kind][at]) for pk, sample in fresh.items())
            yield _gauge(f"node_{word}_{name}_bytes", f"The node's {word} {what}", label, rows)


def _gpus(nodes: Mapping[int, Node], samples: Mapping[int, Sample], now: float) -> Iterator[Metric]:
    known = {
        (nodes[pk].name, str(row[INDEX])): row
        for pk, sample in samples.items() if now - sample["t"] < FRESH
        for row in sample["gpus"]
    }
    for name, column, scale, help_text in (
        ("memory_used_bytes", USED, MIB, "Memory of the GPU in use"),
        ("memory_total_bytes", TOTAL, MIB, "Memory of the GPU"),
        ("load_ratio", LOAD, 0.01, "How busy the GPU is, 0 to 1"),
        ("temperature_celsius", TEMPERATURE, 1, "Temperature of the GPU"),
        ("power_watts", POWER, 1, "Power the GPU draws"),
    ):
        rows = ((key, None if row[column] is None else row[column] * scale) for key, row in known.items())
        yield _gauge(f"gpu_{name}", help_text, ("node", "gpu"), rows)


def _deployments() -> Iterator[Metric]:
    states = Deployment.objects.values_list("name", "state")
    yield _gauge("deployment_state", "The state of the deployment: 1 beside its name", ("deployment", "state"),
                 (((name, state), 1.0) for name, state in states))
    yield _gauge("deployment_up", "Whether the deployment serves", ("deployment",),
                 (((name,), float(state in SERVING)) for name, state in states))
    copies = Replica.objects.values_list("deployment__name", "state").annotate(Count("pk")).order_by()
    yield _gauge("replicas", "Servers of the deployment in each state", ("deployment", "state"),
                 (((name, state), count) for name, state, count in copies))


def _servers(others: Mapping[str, Sample], now: float) -> Iterator[Metric]:
    found = Replica.objects.values_list("pk", "deployment__name", "number")
    said = {(name, str(number)): others[f"r{pk}"] for pk, name, number in found if f"r{pk}" in others}
    fresh = {key: sample for key, sample in said.items() if now - sample["t"] < FRESH}
    for name, key, help_text in (
        ("requests_running", "running", "Requests that the server answers now"),
        ("requests_waiting", "waiting", "Requests that wait in the server"),
        ("kv_cache_ratio", "kv", "Use of the KV cache, 0 to 1"),
        ("prompt_tokens_per_second", "prompt", "Prompt tokens read a second"),
        ("generation_tokens_per_second", "generation", "Tokens generated a second"),
        ("first_token_p95_seconds", "ttft95", "95 of 100 requests had their first token within"),
        ("between_tokens_p95_seconds", "itl95", "95 of 100 tokens followed within"),
    ):
        rows = ((label, sample.get(key)) for label, sample in fresh.items())
        yield _gauge(f"server_{name}", help_text, ("deployment", "replica"), rows)


def _gateway() -> Iterator[Metric]:
    names = ("requests", "errors", "prompt_tokens", "completion_tokens")
    sums = list(Usage.objects.values_list("model").annotate(*(Sum(name) for name in names)).order_by())
    for at, name in enumerate(names, 1):
        family = CounterMetricFamily(f"quarterdeck_gateway_{name}", f"The gateway's {name.replace('_', ' ')}",
                                     labels=("model",))
        for row in sums:
            family.add_metric((row[0],), float(row[at] or 0))
        yield family


def _alerts() -> Iterator[Metric]:
    counts = Alert.objects.filter(state="firing").values_list("kind").annotate(Count("pk")).order_by()
    yield _gauge("alerts_firing", "Alerts now, by rule", ("rule",), (((kind,), count) for kind, count in counts))


def _health(reached: bool, began: float) -> Iterator[Metric]:
    """Redis, the queue, watch, and this answer itself. That the database answers is told by there being an answer."""
    yield _gauge("redis_up", "Whether Redis answers", (), [((), float(reached))])
    if reached:
        with suppress(streams.RedisError, OSError):
            client = streams.client()
            memory = client.info("memory")
            waiting = client.llen(_QUEUE)
            seen = cast(bytes | None, client.get("watch:seen"))
            yield _gauge("redis_memory_bytes", "Memory of Redis", (), [((), float(memory["used_memory"]))])
            yield _gauge("queue_length", "Tasks that wait for a worker", (), [((), float(waiting))])
            lag = None if seen is None else max(0.0, time.time() - float(seen))
            yield _gauge("watch_lag_seconds", "Since watch last looked at everything", (), [((), lag)])
    yield _gauge("database_up", "Whether the database answers", (), [((), 1.0)])
    yield _gauge("scrape_seconds", "What this answer took", (), [((), time.time() - began)])
