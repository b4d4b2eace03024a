"""How a server becomes a node: its host key is offered and approved, a sign-in is proven, our own key takes over.

What the operator typed (a password, a private key) is used once, to install Quarterdeck's own key, and then forgotten.
Nothing is written to the database before all of that has worked.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Self

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from controlplane.problems import Problem
from controlplane.secrets import NO_SECRET, Secret, seal, unseal
from nodes import runs, tasks
from nodes.facts import PROBE, Facts, probe_answer
from nodes.hosts import identity, shared_host
from nodes.models import Node, Run, Step
from nodes.recipes import Recipe, Satisfied, Site
from nodes.recipes import python_env as env
from nodes.remote import ssh
from nodes.remote.command import Command, python, script
from nodes.remote.errors import SignInRefused
from nodes.remote.host import ask
from nodes.remote.ssh import HostKey
from nodes.runs import Done, StepKind, Story
from nodes.states import NodeState

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?", re.IGNORECASE)

_INSTALL_KEY = """
umask 077
mkdir -p "$HOME/.ssh"
touch "$HOME/.ssh/authorized_keys"
grep -qxF "$1" "$HOME/.ssh/authorized_keys" || {
    [ -z "$(tail -c 1 "$HOME/.ssh/authorized_keys")" ] || echo >> "$HOME/.ssh/authorized_keys"
    echo "$1" >> "$HOME/.ssh/authorized_keys"
}
"""
# Replaced as a whole or not at all: on a full disk nobody may lose their keys. grep's status 1: no line is left.
_REMOVE_KEY = """
f="$HOME/.ssh/authorized_keys"
[ -f "$f" ] || exit 0
umask 077
new="$f.quarterdeck"
cp -p "$f" "$new"
{ grep -vxF "$1" "$f" || [ $? -eq 1 ]; } > "$new" || { rm -f "$new"; exit 1; }
mv "$new" "$f"
"""


@dataclass(frozen=True)
class Login:
    """What an operator typed to register a server. Raises `Problem` where a field cannot be right."""

    name: str
    address: str
    port: int
    user: str
    password: Secret = NO_SECRET
    private_key: Secret = NO_SECRET
    passphrase: Secret = NO_SECRET

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise Problem(
                _("%(name)r cannot be a node's name.") % {"name": self.name[:80]},
                _("Use letters, digits and hyphens, at most 63, beginning and ending with a letter or digit."),
            )
        if not _is_address(self.address):
            raise Problem(
                _("%(address)r is neither a host name nor an IP address.") % {"address": self.address[:80]},
                _("Enter something like 172.18.81.126 or te1.lab; the port has its own field."),
            )

    def seal(self) -> str:
        """All of it, encrypted, to be kept in a session until the host key is approved."""
        fields = {key: value.reveal() if isinstance(value, Secret) else value for key, value in asdict(self).items()}
        return seal(json.dumps(fields))

    @classmethod
    def unseal(cls, token: str, ttl: int | None = None) -> Self:
        """What was sealed, less than ``ttl`` seconds ago where that is given. Raises `Problem`."""
        fields = json.loads(unseal(token, ttl).reveal())
        for key in ("password", "private_key", "passphrase"):
            fields[key] = Secret(fields[key])
        return cls(**fields)

    @property
    def ssh(self) -> ssh.SshLogin:
        return ssh.SshLogin(
            self.name, self.address, self.port, self.user, self.password, self.private_key, self.passphrase)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return bool(_HOSTNAME.fullmatch(text)) and not re.fullmatch(r"[\d.]+", text)
    return True


def offered_key(login: Login) -> HostKey:
    """The host key the server shows, for a person to compare. Nothing is sent to it; checks the name is free first."""
    _check_is_new(login)
    if login.private_key.reveal():
        ssh.read_key(login.private_key, login.passphrase)
    return ssh.offered_key(login.address, login.port, login.name)


def _check_is_new(login: Login) -> None:
    if Node.objects.filter(name=login.name).exists():
        raise Problem(_("A node named %(name)s exists already.") % {"name": login.name}, _("Choose another name."))
    known = Node.objects.filter(address=login.address, port=login.port, user=login.user).first()
    if known is not None:
        raise Problem(
            _("%(user)s@%(address)s:%(port)d is registered already, as %(node)s.")
            % {"user": login.user, "address": login.address, "port": login.port, "node": known.name},
            _("Open that node instead, or remove it first."),
        )


def register(login: Login, key_line: str, by: User | None) -> Node:
    """Sign in to the server that holds the approved key, install our own key, prove it works, make the node.

    Raises `Problem` with nothing changed here; on the server at most our public key was added.
    """
    _check_is_new(login)
    public = identity().public_key
    with ssh.connect(login.ssh, HostKey(key_line)) as host:
        ask(host, script(_INSTALL_KEY, f"{public} quarterdeck"))
    node = Node(name=login.name, address=login.address, port=login.port, user=login.user, host_key=key_line)
    _prove_own_key(login, key_line)
    return _save(node, by)


def _prove_own_key(login: Login, key_line: str) -> None:
    own = ssh.SshLogin(login.name, login.address, login.port, login.user, private_key=identity().private_key)
    try:
        ssh.connect(own, HostKey(key_line)).close()
    except SignInRefused as error:
        raise Problem(
            _("%(name)s took Quarterdeck's key into ~/.ssh/authorized_keys but does not accept it.")
            % {"name": login.name},
            _("Allow PubkeyAuthentication in its sshd_config, and see that ~/.ssh belongs to the user with mode 0700."),
        ) from error


def register_local(by: User | None) -> Node:
    """Make this machine a node, or return it if it is one."""
    found = Node.objects.filter(kind=Node.Kind.LOCAL).first()
    if found is not None:
        return found
    return _save(Node(name="local", kind=Node.Kind.LOCAL, address="127.0.0.1", root=settings.LOCAL_NODE_ROOT), by)


def _save(node: Node, by: User | None) -> Node:
    try:
        with transaction.atomic():
            node.save()
    except IntegrityError as error:
        raise Problem(_("This server was just registered by somebody else."), _("Look for it in the list.")) from error
    check(node, by)
    tasks.poke_watch()
    return node


def approve_new_key(node: Node, by: User | None) -> None:
    """Pin the key the host shows now in place of the old one, and look at the node again."""
    if not node.offered_host_key:
        raise Problem(_("%(node)s shows the key that is pinned.") % {"node": node.name})
    node.host_key, node.offered_host_key = node.offered_host_key, ""
    node.save(update_fields=["host_key", "offered_host_key"])
    check(node, by)


def check(node: Node, by: User | None) -> Run:
    """Gather the node's facts again."""
    with transaction.atomic():
        run = runs.start("check", node.subject, [[("facts", node)]], by)
        node.move(NodeState.CHECKING)
    return run


def prepare(node: Node, by: User | None) -> Run:
    """Bring the node to where it can serve: environment and packages; what is there already is skipped."""
    with transaction.atomic():
        run = runs.start("prepare", node.subject, prepare_stages(node), by)
        node.move(NodeState.PREPARING)
    return run


def prepare_stages(*nodes: Node) -> list[list[tuple[str, Node]]]:
    """The stages that make nodes ready, for whatever run needs them."""
    kinds = ("facts", "environment", "packages", "verification", "facts")
    return [[(kind, node) for node in nodes] for kind in kinds]


def forget(node: Node, by: User | None) -> None:
    """Take the node out of Quarterdeck, and our key off it if it can be reached. Raises `Problem` while it is used."""
    if node.heads.filter(deployments__isnull=False).exists():
        raise Problem(
            _("%(node)s still has deployments.") % {"node": node.name}, _("Stop and delete them first."))
    if node.kind == Node.Kind.SSH:
        _take_key_away(node)
    node.heads.all().delete()
    node.delete()


def _take_key_away(node: Node) -> None:
    try:
        ask(shared_host(node), script(_REMOVE_KEY, f"{identity().public_key} quarterdeck"))
    except Problem:
        return  # a node that is gone cannot be asked; forgetting it is what was wanted


# --- steps ------------------------------------------------------------------------------------------------------


def site(node: Node) -> Site:
    """What recipes need to know of the node and of the installation's settings."""
    return Site(root=node.root_dir, pip_index=settings.PIP_INDEX, torch_cpu_index=settings.TORCH_CPU_INDEX)


def gather(node: Node) -> Facts:
    """Ask the node what it is, and remember it. Raises `Problem`."""
    sent = time.time()
    answer = ask(shared_host(node), python("python3", PROBE, node.root or "~/.quarterdeck"), timeout=30)
    try:
        node.facts_json = probe_answer(answer.text, sent, time.time())
    except ValueError as error:
        raise Problem(
            _("%(node)s did not say what it has: %(said)s") % {"node": node.name, "said": answer.last_words()},
            _("Sign in there by hand as the same user; what its shell prints at the start may be in the way."),
        ) from error
    node.facts_at = timezone.now()
    node.save(update_fields=["facts_json", "facts_at"])
    node.poke()
    return node.facts


def _gather_step(step: Step) -> Done:
    facts = gather(step.node)
    return Done(_("%(cpus)d CPUs, %(gpus)d GPUs") % {"cpus": facts.cpus, "gpus": len(facts.gpus)})


def from_recipe(recipe: Recipe) -> Callable[[Step], Command | Satisfied]:
    """A recipe as a step's beginning: decided from the node's facts."""
    return lambda step: recipe(step.node.facts, site(step.node))


def _settled(run: Run, ok: bool, reason: str) -> None:
    node = Node.objects.filter(pk=run.about.partition(":")[2]).first()
    if node is None:
        return
    if not ok:
        node.move(NodeState.FAILED, reason)
    else:
        node.move(node.rest_state)


runs.register(
    StepKind("facts", gettext_lazy("Look at the server"), _gather_step),
    StepKind("environment", gettext_lazy("Python environment"), from_recipe(env.environment)),
    StepKind("packages", gettext_lazy("Packages: vLLM, Ray, PyTorch"), from_recipe(env.packages)),
    StepKind("verification", gettext_lazy("Verification"), from_recipe(env.verification)),
)
runs.register_story(Story("check", gettext_lazy("Check"), _settled))
runs.register_story(Story("prepare", gettext_lazy("Prepare"), _settled))
