"""Keeping conversations: what a page may send of one, the bounds, and how one is told back.

A conversation holds at most what one request to the gateway may (the whole of it is sent each time); a user
keeps the newest `MOST_CONVERSATIONS`, and less when they are large.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Max
from django.utils import timezone
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from deployments.models import Deployment
from deployments.playground.models import Conversation, Message

MOST_MESSAGES = 400  # in a conversation
MOST_BYTES = 20 * 1024 * 1024  # in a conversation
MOST_CONVERSATIONS = 200  # of a user
MOST_BYTES_OF_USER = 100 * 1024 * 1024

Text = Annotated[str, msgspec.Meta(max_length=400_000)]
Line = Annotated[str, msgspec.Meta(max_length=2_000)]
Turn = Annotated[int, msgspec.Meta(ge=0, lt=MOST_MESSAGES)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Number = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
_PICTURE = r"^data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}$"
Picture = Annotated[str, msgspec.Meta(max_length=7_000_000, pattern=_PICTURE)]


class Begin(msgspec.Struct, forbid_unknown_fields=True):
    """A new conversation; with ``copy_of`` it starts with the turns of another one before turn ``before``."""

    title: Text
    copy_of: Annotated[int, msgspec.Meta(ge=1, le=2**53)] | None = None
    before: Turn = 0


class Prompt(msgspec.Struct, tag_field="role", tag="prompt", forbid_unknown_fields=True):
    """What the user typed, and the settings of that moment as the form had them."""

    turn: Turn
    text: Text
    images: Annotated[list[Picture], msgspec.Meta(max_length=8)] = []
    settings: Annotated[dict[Line, Text], msgspec.Meta(max_length=24)] = {}


class Figures(msgspec.Struct, forbid_unknown_fields=True):
    """Of one answer: times in milliseconds, speed in tokens a second, counts of tokens."""

    ttft: Amount | None = None
    took: Amount | None = None
    speed: Amount | None = None
    tokens: Number = 0
    prompt: Number | None = None
    thought: Number = 0
    thinking: Amount = 0
    finish: Annotated[str, msgspec.Meta(max_length=40)] | None = None


class Answer(msgspec.Struct, tag_field="role", tag="answer", forbid_unknown_fields=True):
    """What a model answered, or why it did not."""

    turn: Turn
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    text: Text
    state: Literal["done", "stopped", "failed"]
    mode: Literal["chat", "completion"]
    reasoning: Text = ""
    why: Line = ""
    figures: Figures = msgspec.field(default_factory=Figures)


def begin(owner: User, new: Begin) -> Conversation:
    """A conversation of ``owner``; raises `Conversation.DoesNotExist` when the one to copy is not theirs."""
    title = _plain(" ".join(new.title.split()))[:120]
    with transaction.atomic():
        begun = Conversation.objects.create(owner=owner, title=title or "…")
        if new.copy_of is not None:
            _copy(Conversation.objects.get(owner=owner, pk=new.copy_of), new.before, begun)
        _make_room(owner)
    return begun


def _copy(source: Conversation, before: int, into: Conversation) -> None:
    messages = list(source.messages.filter(turn__lt=before))
    for message in messages:
        message.pk, message.conversation = None, into
    Message.objects.bulk_create(messages)
    into.size = sum(len(msgspec.json.encode(message.content)) for message in messages)
    into.save(update_fields=["size"])


def add(owner: User, pk: int, said: Prompt | Answer) -> Message:
    """Append to a conversation; raises `Conversation.DoesNotExist`, and `Problem` when it is full."""
    content = _plain(msgspec.to_builtins(said))
    del content["turn"], content["role"]
    model = content.pop("model", "")
    size = len(msgspec.json.encode(content))
    with transaction.atomic():
        into = Conversation.objects.select_for_update().get(owner=owner, pk=pk)
        if into.size + size > MOST_BYTES or into.messages.count() >= MOST_MESSAGES:
            raise Problem(_("This conversation is full; nothing more of it is kept."), _("Begin a new one."))
        into.size += size
        into.changed_at = timezone.now()
        into.save(update_fields=["size", "changed_at"])
        server = _server_of(model)
        added = Message.objects.create(conversation=into, turn=said.turn, model=model, server=server, content=content)
        _make_room(owner)
    return added


def _server_of(model: str) -> str:
    """The job behind a model's answers now: another one after each new start. Empty for none."""
    deployment = Deployment.objects.filter(name=model).first() if model else None
    job = deployment.replica.server_id if deployment is not None and deployment.replica is not None else None
    return str(job or "")


def _make_room(owner: User) -> None:
    """Forget the oldest conversations of a user who has too many, or too much in them."""
    total, too_many = 0, []
    kept = Conversation.objects.filter(owner=owner).values_list("pk", "size")
    for count, (pk, size) in enumerate(kept):
        total += size
        if count and (count >= MOST_CONVERSATIONS or total > MOST_BYTES_OF_USER):
            too_many.append(pk)
    if too_many:
        Conversation.objects.filter(pk__in=too_many).delete()


def listed(owner: User) -> list[dict[str, Any]]:
    """The user's conversations, newest first, with the models that answered in them."""
    mine = Conversation.objects.filter(owner=owner)
    conversations = mine.annotate(last=Max("messages__turn")).order_by("-changed_at", "-pk")
    models: dict[int, list[str]] = {}
    named = Message.objects.filter(conversation__owner=owner).exclude(model="").order_by("model")
    for pk, model in named.values_list("conversation", "model").distinct():
        models.setdefault(pk, []).append(model)
    return [
        {
            "id": one.pk,
            "title": one.title,
            "changed_at": one.changed_at,
            "prompts": 0 if one.last is None else one.last + 1,
            "models": models.get(one.pk, []),
        }
        for one in conversations
    ]


def told(conversation: Conversation) -> dict[str, Any]:
    """All of a conversation: its turns in order, each a prompt with its answers in the order they were given."""
    turns: dict[int, dict[str, Any]] = {}
    for message in conversation.messages.all():
        turn = turns.setdefault(message.turn, {"prompt": None, "answers": []})
        content = message.content | {"at": message.created_at}
        if message.model:
            turn["answers"].append(content | {"model": message.model, "server": message.server})
        else:
            turn["prompt"] = content
    whole = [turns[number] for number in sorted(turns) if turns[number]["prompt"]]
    return {"id": conversation.pk, "title": conversation.title, "turns": whole}


def _plain(value: Any) -> Any:
    """The value without NUL characters, which PostgreSQL does not store."""
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value
