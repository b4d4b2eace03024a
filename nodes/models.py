"""Nodes, clusters, runs, steps and jobs. What is wanted and what was last seen; the stories are in `nodes.runs`."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from controlplane.lifecycle import Lifecycle
from controlplane.secrets import EncryptedField
from nodes import states
from nodes.candidates import Batch, Candidate
from nodes.facts import Facts
from nodes.telemetry.models import Rollup


class Cluster(Lifecycle):
    """A named set of nodes that runs one Ray cluster: one head, the others join it.

    stopped → starting → ready ⇄ degraded → stopping → stopped; degraded is wanted and not complete.
    """

    TRANSITIONS = states.CLUSTER_TRANSITIONS

    state = models.CharField(max_length=20, default=states.ClusterState.STOPPED, db_index=True)
    name = models.CharField(max_length=63, unique=True)
    head = models.ForeignKey("Node", on_delete=models.PROTECT, related_name="heads")
    ray_token = EncryptedField(blank=True, default="")  # Ray's own token authentication
    network = models.CharField(max_length=64, blank=True)  # a subnet or an interface; empty: as nodes are reached
    port_base = models.PositiveIntegerField(default=0)  # the first of its block of ports; 0: PORT_BASE
    kept = models.BooleanField(default=False)  # started by hand: stays when no deployment uses it
    restarts = models.PositiveIntegerField(default=0)  # since it last was well for a while
    next_try_at = models.DateTimeField(null=True, blank=True)  # when what is missing is started again
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("cluster", args=[self.name])


class Bastion(models.Model):
    """A jump host that is no node itself: nodes behind it are reached through it, with Quarterdeck's own key."""

    user = models.CharField(max_length=64)
    address = models.CharField(max_length=255)
    port = models.PositiveIntegerField(default=22)
    host_key = models.TextField()  # pinned, as a node's
    offered_host_key = models.TextField(blank=True)  # another one it showed last; blocks every node behind it

    class Meta:
        constraints = [models.UniqueConstraint(fields=["address", "port", "user"], name="one_bastion_per_login")]

    def __str__(self) -> str:
        return f"{self.user}@{self.address}" + (f":{self.port}" if self.port != 22 else "")

    @property
    def key_changed(self) -> bool:
        return bool(self.offered_host_key)


class Node(Lifecycle):
    """One server, reached over SSH, or ``local``: the machine Quarterdeck itself runs on."""

    TRANSITIONS = states.NODE_TRANSITIONS

    class Kind(models.TextChoices):
        LOCAL = "local", _("this machine")
        SSH = "ssh", _("over SSH")

    class Sudo(models.TextChoices):
        """How the user becomes root there. A user who is root needs none of it, whatever stands here."""

        NONE = "none", _("no root")
        PASSWORDLESS = "passwordless", _("sudo without a password")
        PASSWORD = "password", _("sudo with a password")

    state = models.CharField(max_length=20, default=states.NodeState.NEW, db_index=True)
    name = models.CharField(max_length=63, unique=True)
    kind = models.CharField(max_length=5, choices=Kind, default=Kind.SSH)
    address = models.CharField(max_length=255)
    port = models.PositiveIntegerField(default=22)
    user = models.CharField(max_length=64, blank=True)
    host_key = models.TextField(blank=True)  # pinned: "ssh-ed25519 AAAA…"
    offered_host_key = models.TextField(blank=True)  # a different key the host showed last; blocks every operation
    jump = models.ForeignKey(  # the node through which this one is reached; at most one of jump and bastion is set
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="reached_through"
    )
    bastion = models.ForeignKey(
        Bastion, null=True, blank=True, on_delete=models.PROTECT, related_name="reached_through"
    )
    sudo = models.CharField(max_length=12, choices=Sudo, default=Sudo.NONE)
    sudo_password = EncryptedField(blank=True, default="")  # kept only if the operator says so
    labels = models.JSONField(default=list, blank=True)  # short words, for filters
    root = models.CharField(max_length=255, blank=True)  # absolute; empty: ~/.quarterdeck of the user
    preparation = EncryptedField(blank=True, default="")  # `nodes.options.Options`; an index may have a password
    facts_json = models.JSONField(default=dict, blank=True)
    facts_at = models.DateTimeField(null=True, blank=True)
    cluster = models.ForeignKey(Cluster, null=True, blank=True, on_delete=models.SET_NULL, related_name="nodes")
    ray = models.ForeignKey(  # the job that holds this node in its cluster
        "Job", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    ray_resources = models.JSONField(default=dict, blank=True)  # what it offers Ray besides: name → amount
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["address", "port", "user"], name="one_node_per_login")]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("node", args=[self.name])

    @property
    def key_changed(self) -> bool:
        """It, or a host on the way to it, showed another key than the pinned one: nothing may be done there."""
        before = self.jump or self.bastion
        return bool(self.offered_host_key) or (before is not None and before.key_changed)

    @property
    def facts(self) -> Facts:
        return Facts.from_json(self.facts_json)

    @property
    def rest_state(self) -> states.NodeState:
        """The state of the node when nothing is being done to it and it can be reached."""
        return states.NodeState.READY if self.facts.environment.verified else states.NodeState.NEW

    @property
    def root_dir(self) -> str:
        """Where Quarterdeck keeps its things on the node: absolute, known once facts were gathered."""
        return self.root or f"{self.facts.home}/.quarterdeck"


class Identity(models.Model):
    """Quarterdeck's own SSH key: one Ed25519 pair an installation, made when it is first needed."""

    private_key = EncryptedField()
    public_key = models.TextField()

    def __str__(self) -> str:
        return self.public_key


class Run(Lifecycle):
    """One operation with a story: stages of steps over nodes, in order.

    waiting → running → done | failed. A failed step lets its stage finish, then fails the run.
    """

    TRANSITIONS = states.RUN_TRANSITIONS

    state = models.CharField(max_length=20, default=states.RunState.WAITING, db_index=True)
    story = models.CharField(max_length=40)  # the key of a story in `nodes.runs.stories`
    about = models.CharField(max_length=80, db_index=True)  # the subject it is about: "node:3", "deployment:1"
    options = models.JSONField(default=dict, blank=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["about"],
                condition=models.Q(state__in=["waiting", "running"]),
                name="one_unfinished_run_per_subject",
            )
        ]

    def __str__(self) -> str:
        return f"{self.story} {self.about} #{self.pk}"


class Step(Lifecycle):
    """One thing a run does on one node: waiting → running → done | failed, or skipped.

    ``kind`` names a recipe in `nodes.runs.step_kinds`; its command is made anew from facts each time, never stored.
    """

    TRANSITIONS = states.STEP_TRANSITIONS

    state = models.CharField(max_length=20, default=states.RunState.WAITING, db_index=True)
    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="steps")
    stage = models.PositiveSmallIntegerField()
    kind = models.CharField(max_length=40)
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="steps")
    about = models.CharField(max_length=80, blank=True)  # what it is about beside its run: "replica:3"
    job = models.OneToOneField("Job", null=True, blank=True, on_delete=models.SET_NULL, related_name="step")
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["stage", "pk"]

    def __str__(self) -> str:
        return f"{self.kind} on {self.node}"


class Job(Lifecycle):
    """One command on one node, started detached, that outlives SSH and Quarterdeck.

    Its directory on the node, ``<root>/jobs/<id>``, has the command, the log, the pid and the exit status.
    """

    TRANSITIONS: ClassVar = states.JOB_TRANSITIONS

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    state = models.CharField(max_length=20, default=states.JobState.STARTING, db_index=True)
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="jobs")
    name = models.CharField(max_length=80)
    service = models.BooleanField(default=False)  # meant to run until it is stopped
    shown_command = models.TextField(blank=True)  # as people see it, secrets masked
    exit_status = models.IntegerField(null=True, blank=True)
    log_size = models.BigIntegerField(null=True, blank=True)  # bytes, known once it has ended
    created_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    swept = models.BooleanField(default=False)  # its directory on the node and its archived log were removed

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} on {self.node}"


class ArchivedLog(models.Model):
    """A piece of an ended job's log, kept when its stream and its node may be gone. ``data`` is gzip."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="archive")
    start = models.BigIntegerField()
    end = models.BigIntegerField()
    data = models.BinaryField()
    times = models.JSONField(default=list)  # [offset, ms since 1970] of bytes in it, as far as they are known

    class Meta:
        ordering = ["start"]
        constraints = [models.UniqueConstraint(fields=["job", "start"], name="one_archive_piece_per_offset")]

    def __str__(self) -> str:
        return f"{self.job_id} {self.start}–{self.end}"


from nodes.together import ClusterKey, Link  # noqa: E402  (they name the models above)

__all__ = ["ArchivedLog", "Bastion", "Batch", "Candidate", "Cluster", "ClusterKey", "Identity", "Job", "Link", "Node",
           "Rollup", "Run", "Step"]
