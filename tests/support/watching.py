"""A real watch beside a test, with or without a worker's part; and what a test with jobs on this machine needs else."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import connection
from pytest_django import Settings

from nodes import runs, tasks
from nodes.models import Job
from nodes.states import JOB_ACTIVE
from nodes.watch import Watch


@contextmanager
def watching() -> Iterator[Watch]:
    """A watch in a thread of its own, until the block ends."""
    watch = Watch()

    def run() -> None:
        watch.run()
        connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join(20)
        for watcher in watch.watchers.values():
            watcher.join(10)
        watch.clusters.join(10)


@pytest.fixture
def watch(valkey: str) -> Iterator[Watch]:
    with watching() as one:
        yield one


@pytest.fixture
def quarterdeck(valkey: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """A watch, and the worker's tasks done where they are sent; a test advances runs itself. Jobs end with it."""
    monkeypatch.setattr(tasks, "send", lambda task, *arguments: task(*arguments))
    monkeypatch.setattr(runs, "queue", lambda run_id: None)
    with watching() as one:
        yield one
    for job in Job.objects.filter(state__in=JOB_ACTIVE).select_related("node"):
        runs.end_job(job, "KILL")


@pytest.fixture
def own_ports(settings: Settings) -> None:
    """Ports that no other test run on this machine uses, and that the system gives to no connection by itself."""
    settings.PORT_BASE = 10000 + os.getpid() % 20 * 500


@pytest.fixture
def few_pythons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The probe asks every Python it finds who it is; a developer's machine may have a dozen."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{sys.base_prefix}/bin:/usr/bin:/bin")
