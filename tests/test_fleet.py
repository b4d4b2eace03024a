"""Overview and list of nodes with a fleet: as many queries for two hundred nodes as for ten, and who is where."""

from __future__ import annotations

import json

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from deployments import fleet as fleet_data
from deployments.models import Deployment
from nodes.models import Cluster, Job, Node
from tests.support import fleet
from tests.test_pages import signed_in

pytestmark = pytest.mark.django_db


def queries(client: Client, path: str) -> int:
    with CaptureQueriesContext(connection) as asked:
        assert client.get(path).status_code == 200
    return len(asked)


def test_two_hundred_nodes_take_as_many_queries_as_ten() -> None:
    admin = signed_in("admin")
    fleet.make(10, prefix="few")
    few = [queries(admin, path) for path in ("/", "/nodes/")]
    fleet.make(190, prefix="many")
    assert [queries(admin, path) for path in ("/", "/nodes/")] == few
    assert max(few) <= 12
    assert len(admin.get("/").context["fleet"]["nodes"]) == 200


def test_a_job_leads_to_its_deployment_by_server_ray_or_place() -> None:
    one, two = fleet.make(2)
    cluster = Cluster.objects.get()
    Deployment.objects.all().delete()
    ray = Job.objects.create(node=two, name="ray", state="running", service=True)
    Node.objects.filter(pk=two.pk).update(ray=ray)
    server = Job.objects.create(node=one, name="vllm", state="running", service=True)
    made = Deployment.objects.create(name="m", model="demo", cluster=cluster, port=1, state="ready")
    made.replicas.create(number=1, node=one, port=1, state="ready", server=server,
                         placement=[{"host": one.name, "gpu": 3}, {"host": two.name, "gpu": 5}])
    made.replicas.create(number=2, node=two, port=2, state="stopped")
    told = fleet_data.fleet(fleet_data.nodes(), Deployment.objects.prefetch_related("replicas"))
    assert told["jobs"] == {str(server.pk): ["m"], str(ray.pk): ["m"]}
    assert [node["placed"] for node in told["nodes"]] == [{"m": [3]}, {"m": [5]}]
    assert set(told["active"]) == {str(server.pk), str(ray.pk)}
    assert json.dumps(told)
