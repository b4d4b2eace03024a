"""A fleet that exists only as rows and samples: as many nodes and GPUs as one likes, for pages and benches."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from deployments.models import Deployment
from nodes.models import Cluster, Node
from nodes.telemetry import store

MIB = 81_559


def make(count: int, gpus: int = 8, prefix: str = "gpu") -> list[Node]:
    """Nodes that nobody watches (no key was approved), ten to a cluster, with a deployment on each third cluster."""
    facts = {
        "home": "/home/ops", "cpus": 96, "memory_total": 2**40, "os": "Debian GNU/Linux 12", "python": "3.11.2",
        "gpus": [{"index": i, "name": "NVIDIA H100 80GB HBM3", "memory_total_mib": MIB} for i in range(gpus)],
    }
    states = ["ready"] * 17 + ["preparing", "unreachable", "failed"]
    nodes = Node.objects.bulk_create(
        Node(name=f"{prefix}{n:03d}", address=f"{prefix}-{n}.lab", user="ops", state=states[n % 20],
             facts_json=facts, labels=[["h100", "rack-a"], ["h100", "rack-b"]][n % 2],
             reason="It did not answer for 8 s." if states[n % 20] == "unreachable" else "")
        for n in range(count)
    )
    for first in range(0, count, 10):
        cluster = Cluster.objects.create(name=f"{prefix}-c{first // 10}", head=nodes[first])
        Node.objects.filter(pk__in=[node.pk for node in nodes[first : first + 10]]).update(cluster=cluster)
        if first % 30 == 0:
            name = f"{prefix}-model-{first}"
            made = Deployment.objects.create(name=name, model="demo", cluster=cluster, port=20700, state="ready")
            made.replicas.create(number=1, node=nodes[first], port=20700, state="ready")
    return nodes


def sample(number: int, gpus: int = 8, at: float | None = None) -> dict[str, Any]:
    """What node ``number`` could say."""
    at = time.time() if at is None else at
    wave = 50 + 45 * math.sin(at / 60 + number)
    rows = [
        [i, MIB * ((number * 7 + i * 3) % 10) // 10, MIB, round(max(0.0, wave - 5 * i)), 45 + i, 120 + 5 * wave]
        for i in range(gpus)
    ]
    return {"t": round(at, 1), "cpu": round(wave, 1), "mem": [2**39, 2**40], "disk": [2**39, 2**41], "gpus": rows}


def say(nodes: list[Node], gpus: int = 8) -> None:
    """One second of samples, and who holds the first GPU of each fifth node."""
    entries = [store.Entry(node.pk, "s", json.dumps(sample(node.pk, gpus))) for node in nodes]
    held = json.dumps([[0, 41_877, 11_469, "alice", "python train.py --epochs 90", ""]])
    store.add([*entries, *(store.Entry(node.pk, "w", held) for node in nodes[::5])])
