"""The process that never ends: one connection a node, over which its logs, samples and exits arrive.

A `Watcher` thread a node runs the observer program there and files what it says: log bytes into streams (by offset, so
nothing is lost or repeated), samples, ends of jobs into the database. The main loop shares nodes out by lease, tells
watchers which jobs to follow, and ticks once a second, so that whatever is unfinished is looked at again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.resources import files
from typing import Any

from django.conf import settings
from django.db import DatabaseError, close_old_connections
from django.utils import timezone
from redis.exceptions import RedisError

from controlplane import streams
from nodes import logs, runs, signals, tasks
from nodes.clusters.watch import ClusterWatch
from nodes.hosts import open_host
from nodes.models import Job, Node, Run
from nodes.remote.command import python
from nodes.remote.errors import HostKeyChanged, HostProblem
from nodes.remote.host import Channel
from nodes.states import FINISHED, JOB_ACTIVE, NodeState
from nodes.telemetry.filing import Filing

log = logging.getLogger(__name__)
OBSERVER = files("nodes.remote").joinpath("observer.py").read_text()
LEASE_SECONDS = 10
#: Bytes; the observer sends pieces of at most 1 MiB, and its other lines are short.
_LONGEST_PIECE = 1 << 20
_LONGEST_LINE = 1 << 18
#: A node is called unreachable when it could not be reached for this long: a shorter glitch is nobody's news.
GLITCH_SECONDS = 8
#: What other packages run beside watch, each in a thread of its own, until the event is set.
companions: list[Callable[[threading.Event], None]] = []


class Frames:
    """The observer's output, taken apart: JSON objects, and the raw bytes that belong to a log object."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = bytearray()

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        while (line := self._line()) is not None:
            message = json.loads(line)
            if "log" not in message:
                yield message, b""
                continue
            size = _bounded(message["size"])
            data = self._exactly(_bounded(message.get("packed", size)))
            if data is None:
                return
            yield message, unpacked(data, size) if "packed" in message else data

    def _line(self) -> bytes | None:
        searched = 0
        while (at := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > _LONGEST_LINE:
                raise ValueError("a line without an end")
            if not self._more():
                return None
        return self._take(at + 1)

    def _exactly(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            if not self._more():
                return None
        return self._take(size)

    def _more(self) -> bool:
        data = self._channel.read(1 << 18)
        self._buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def unpacked(data: bytes, size: int) -> bytes:
    """What zlib made of ``size`` bytes. Raises ValueError for anything else; never gives more than ``size``."""
    unpacker = zlib.decompressobj()
    try:
        whole = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(whole) != size:
        raise ValueError(f"{len(whole)} bytes in place of {size}")
    return whole


def _bounded(size: int) -> int:
    """A node says how much comes; what it says is not believed beyond what the observer sends."""
    if not 0 <= size <= _LONGEST_PIECE:
        raise ValueError(f"a piece of {size} bytes")
    return size


class Watcher(threading.Thread):
    """Watches one node until `stop`; connects again and again, with a pause that grows to 15 s."""

    def __init__(self, node: Node, filing: Filing) -> None:
        super().__init__(name=f"watch-{node.name}", daemon=True)
        self.node, self.filing = node, filing
        self.stopping = threading.Event()
        self._channel: Channel | None = None
        self._following: set[str] = set()
        self._wanted: dict[str, str] = {}  # job id → its directory on the node
        self._lock = threading.Lock()
        self._lost_since: float | None = None

    def run(self) -> None:
        pause = 1.0
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                self._observe()
            except HostProblem as error:
                self._note_lost(error)
            except Node.DoesNotExist:
                return
            except (RedisError, OSError, DatabaseError, ValueError, KeyError, TypeError) as error:
                log.warning("%s: %s: %s; watching again soon", self.node, type(error).__name__, error)
            finally:
                close_old_connections()
            pause = 1.0 if time.monotonic() - began > 30 else min(15.0, pause * 1.7)
            self.stopping.wait(pause)

    def stop(self) -> None:
        self.stopping.set()
        self.break_off()

    def break_off(self) -> None:
        """Let go of the connection; the next one is made only if the host shows the pinned key."""
        with self._lock:
            if self._channel is not None:
                self._channel.interrupt()

    def follow(self, places: dict[str, str]) -> None:
        """Make these jobs (id → directory on the node) the ones that are followed. Called from the main loop."""
        with self._lock:
            self._wanted = places
            if self._channel is not None:
                with suppress(HostProblem):  # the reading side notices too, and connects again
                    self._order_wanted(self._channel)

    def _observe(self) -> None:
        self.node.refresh_from_db()
        with open_host(self.node) as host:
            channel = host.open(python("python3", OBSERVER, self.node.root_dir))
            try:
                self._note_found()
                with self._lock:
                    self._following = set()
                    self._channel = channel
                    if self.stopping.is_set():  # stop() came before there was a channel to interrupt
                        return
                    self._order_wanted(channel)
                for message, data in Frames(channel):
                    self._file(channel, message, data)
            finally:
                with self._lock:
                    self._channel = None
                channel.close()

    def _order_wanted(self, channel: Channel) -> None:
        for job_id in self._wanted.keys() - self._following:
            self._order_from(channel, job_id, streams.end(streams.log_key(job_id)) or 0)
        for job_id in self._following - self._wanted.keys():
            self._order(channel, {"forget": job_id})
        self._following = set(self._wanted)

    def _order_from(self, channel: Channel, job_id: str, at: int) -> None:
        keep = settings.LOG_FILE_BYTES
        self._order(channel, {"follow": job_id, "dir": self._wanted[job_id], "at": at, "keep": keep})

    def _order(self, channel: Channel, order: dict[str, Any]) -> None:
        channel.write(json.dumps(order).encode() + b"\n")

    def _file(self, channel: Channel, message: dict[str, Any], data: bytes) -> None:
        if message.get("log", message.get("end")) not in (None, *self._wanted):
            return  # not this node's job, or one that is not followed any more
        if "log" in message:
            self._file_log(channel, message["log"], message["at"], data)
        elif "end" in message:
            self._file_end(message)
        elif "who" in message:
            self.filing.add_holders(self.node.pk, message["who"])
        else:
            self.filing.add_sample(self.node.pk, message["sample"])

    def _file_log(self, channel: Channel, job_id: str, at: int, data: bytes) -> None:
        stands_at = streams.append(streams.log_key(job_id), at, data)
        if stands_at == at + len(data):
            return
        # Another reader was there, or the stream was emptied: the stream says where to go on.
        with self._lock:
            if job_id in self._wanted:
                self._order_from(channel, job_id, stands_at)

    def _file_end(self, message: dict[str, Any]) -> None:
        job = Job.objects.get(pk=message["end"])
        ended = {"exit_status": message["status"], "log_size": message["size"], "ended_at": timezone.now()}
        with self._lock:
            self._following.discard(message["end"])
            self._wanted.pop(message["end"], None)
        if job.move(message["state"], **ended):
            tasks.send(tasks.job_over, str(job.pk))

    def _note_found(self) -> None:
        self._lost_since = None
        if self.node.state == NodeState.UNREACHABLE:
            self.node.move(self.node.rest_state)
            signals.node_back.send_robust(Watcher, node=self.node)

    def _note_lost(self, error: HostProblem) -> None:
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        grave = isinstance(error, HostKeyChanged) or now - self._lost_since > GLITCH_SECONDS
        if grave and self.node.fresh().state != NodeState.UNREACHABLE:
            self.node.move(NodeState.UNREACHABLE, error.told)


class Watch:
    """The main loop: leases, followed jobs, ticks."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self.watchers: dict[int, Watcher] = {}
        self.clusters = ClusterWatch()
        self.stopping = threading.Event()
        self.filing = Filing()

    def run(self) -> None:
        """Until `stop`. A database or Redis that is away is waited for."""
        self.filing.start()
        for companion in companions:
            threading.Thread(target=companion, args=[self.stopping], name=companion.__qualname__, daemon=True).start()
        while not self.stopping.is_set():
            try:
                self.turn()
                self._wait_for_poke()
            except (RedisError, OSError, DatabaseError) as error:
                log.warning("watch waits: %s", error)
                self.stopping.wait(1)
            finally:
                close_old_connections()
        for watcher in self.watchers.values():
            watcher.stop()
        self.clusters.stop()
        self.filing.stop()
        self.filing.join(5)

    def stop(self) -> None:
        self.stopping.set()

    def turn(self) -> None:
        """One look at everything: who watches what, what is followed, what is unfinished."""
        known = Node.objects.exclude(host_key="", kind=Node.Kind.SSH).select_related("jump", "bastion")
        nodes = list(known.defer("facts_json", "jump__facts_json"))
        held = self._leases([node.pk for node in nodes])
        mine = {node.pk: node for node in nodes if node.pk in held}
        for gone in self.watchers.keys() - mine.keys():
            self.watchers.pop(gone).stop()
        wanted: dict[int, dict[str, str]] = {pk: {} for pk in mine}
        for job in Job.objects.filter(state__in=JOB_ACTIVE, node__in=mine).select_related("node"):
            wanted[job.node_id][str(job.pk)] = logs.place(job)
        for pk, node in mine.items():
            watcher = self._watcher(node)
            if node.key_changed:
                watcher.break_off()
            else:
                watcher.follow(wanted[pk])
        self.clusters.turn(mine)
        self._tick()

    def _watcher(self, node: Node) -> Watcher:
        watcher = self.watchers.get(node.pk)
        if watcher is None or not watcher.is_alive():
            watcher = self.watchers[node.pk] = Watcher(node, self.filing)
            watcher.start()
        return watcher

    def _leases(self, nodes: list[int]) -> set[int]:
        """Take or renew the leases of nodes; one watch process holds one at a time. Returns those that it has."""
        if not nodes:
            return set()
        keys = [f"watch:lease:{node}" for node in nodes]
        pipe = streams.client().pipeline(transaction=False)
        for key in keys:
            pipe.set(key, self.name, nx=True, ex=LEASE_SECONDS)
        pipe.mget(keys)
        *_, holders = pipe.execute()
        held = zip(nodes, keys, holders, strict=True)
        ours = [(node, key) for node, key, holder in held if holder == self.name.encode()]
        renew = streams.client().pipeline(transaction=False)
        for _node, key in ours:
            renew.expire(key, LEASE_SECONDS)
        renew.execute()
        return {node for node, _key in ours}

    def _tick(self) -> None:
        if not streams.client().set("watch:tick", self.name, nx=True, px=900):
            return  # another watch process does it this second
        streams.client().set("watch:seen", time.time())
        for run_id in Run.objects.exclude(state__in=FINISHED).values_list("pk", flat=True):
            runs.queue(run_id)
        if streams.client().set("watch:sweep", self.name, nx=True, ex=30):
            tasks.send(tasks.keep_logs)
            tasks.send(tasks.sweep_batches)
            tasks.send(tasks.roll_up)
        if streams.client().set("watch:sweep-old", self.name, nx=True, ex=600):
            tasks.send(tasks.sweep_logs)
        for receiver, answer in signals.tick.send_robust(Watch):
            if isinstance(answer, Exception):
                log.error("%s failed on a tick", receiver, exc_info=answer)

    def _wait_for_poke(self) -> None:
        streams.client().blpop([tasks.WATCH_POKES], timeout=1)


