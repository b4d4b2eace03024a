"""How clusters are, second by second: one small program on each head that says what Ray has, kept for the pages.

Runs in watch, where the head's lease is held. A view may be lost: the next one comes in seconds. Nothing is decided
here, so a glitch in observing only makes a view older.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from django.db import DatabaseError, close_old_connections
from redis.exceptions import RedisError

from controlplane.problems import Problem
from nodes import preparation
from nodes.clusters.address import inner_address
from nodes.clusters.steps import keep_view, plan_of
from nodes.clusters.view import View
from nodes.hosts import open_host
from nodes.models import Cluster, Node
from nodes.recipes import ray
from nodes.remote.host import Channel
from nodes.states import CLUSTER_UP

log = logging.getLogger(__name__)
#: Seconds from one view to the next.
EVERY = 3.0
#: Bytes; a view of 500 nodes has fewer.
_LONGEST = 1 << 20


class ClusterWatch:
    """The watchers of all clusters whose head this process watches."""

    def __init__(self) -> None:
        self._watchers: dict[int, ClusterWatcher] = {}

    def turn(self, nodes: dict[int, Node]) -> None:
        """Watch every cluster that is up and headed by one of these nodes, and no other.

        What runs by itself on one node for its deployments is not worth a program there: its job says all.
        """
        up = Cluster.objects.filter(state__in=CLUSTER_UP, head__in=nodes).select_related("head")
        wanted = {one.pk: one for one in up if one.kept or one.nodes.count() > 1}
        for gone in self._watchers.keys() - wanted.keys():
            self._watchers.pop(gone).stop()
        for pk, cluster in wanted.items():
            if pk not in self._watchers or not self._watchers[pk].is_alive():
                self._watchers[pk] = ClusterWatcher(cluster)
                self._watchers[pk].start()

    def stop(self) -> None:
        for watcher in self._watchers.values():
            watcher.stop()

    def join(self, seconds: float) -> None:
        """Wait for all of them to end, so long each at most."""
        for watcher in self._watchers.values():
            watcher.join(seconds)


class ClusterWatcher(threading.Thread):
    """Follows one cluster until `stop`; asks again and again, with a pause that grows to 15 s."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(name=f"cluster-{cluster.name}", daemon=True)
        self.cluster = cluster
        self._stopping = threading.Event()
        self._channel: Channel | None = None

    def stop(self) -> None:
        self._stopping.set()
        if self._channel is not None:
            self._channel.interrupt()

    def run(self) -> None:
        pause = EVERY
        while not self._stopping.is_set():
            try:
                pause = EVERY if self._follow() else min(pause * 2, 15.0)
            except (Problem, OSError, ValueError, RedisError, DatabaseError) as error:
                log.warning("the cluster %s is not seen: %s", self.cluster, error)
                pause = min(pause * 2, 15.0)
            finally:
                close_old_connections()
            self._stopping.wait(pause)

    def _follow(self) -> bool:
        """Keep every view until there are no more; whether there was one."""
        head, seen = self.cluster.head, None
        question = ray.follow(preparation.site(head), plan_of(self.cluster), inner_address(head), EVERY)
        with open_host(head) as host:
            self._channel = host.open(question)
            try:
                for line in _lines(self._channel):
                    seen = self._keep(line, seen)
            finally:
                channel, self._channel = self._channel, None
                with suppress(Problem):
                    channel.close()
        return seen is not None

    def _keep(self, line: str, last: View | None) -> View:
        view = keep_view(self.cluster, line)
        if last is None or replace(view, t=last.t) != last:
            self.cluster.poke()
        return view


def _lines(channel: Channel) -> Iterator[str]:
    buffer = b""
    while data := channel.read(1 << 16):
        *whole, buffer = (buffer + data).split(b"\n")
        yield from (line.decode() for line in whole)
        if len(buffer) > _LONGEST:
            raise ValueError("a line without an end")
