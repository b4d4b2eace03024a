"""What is kept of the playground: the conversations of each user, within bounds."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils import timezone


class Conversation(models.Model):
    """A user's prompts and what the models answered. Nobody else sees it."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations")
    title = models.CharField(max_length=120)
    size = models.PositiveBigIntegerField(default=0)  # bytes of its messages' JSON
    created_at = models.DateTimeField(default=timezone.now)
    changed_at = models.DateTimeField(default=timezone.now)

    class Meta:
        app_label = "deployments"
        ordering = ["-changed_at", "-pk"]

    def __str__(self) -> str:
        return self.title


class Message(models.Model):
    """A prompt, or one answer to it. A prompt may have many answers: of several models, and given again."""

    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages")
    turn = models.PositiveSmallIntegerField()  # 0, 1, …: which prompt this is or answers
    model = models.CharField(max_length=63, blank=True)  # who answered; empty: this is the prompt
    server = models.CharField(max_length=36, blank=True)  # the job of the model server that answered
    content = models.JSONField()  # as `deployments.playground.saved` describes it
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        app_label = "deployments"
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"{self.model or 'prompt'} of turn {self.turn}"
