"""How a server becomes a node: its host key is offered and approved, a sign-in is proven, our own key takes over.

What the operator typed (a password, a private key) is used once, to install Quarterdeck's own key, and then forgotten.
Nothing is written to the database before all of that has worked.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import asdict, dataclass
from typing import Self

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from controlplane.secrets import NO_SECRET, Secret, seal, unseal
from nodes import tasks
from nodes.hosts import identity, shared_host
from nodes.models import Node
from nodes.preparation import check
from nodes.remote import ssh
from nodes.remote.command import script
from nodes.remote.errors import SignInRefused
from nodes.remote.host import ask
from nodes.remote.ssh import HostKey

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


def forget(node: Node, by: User | None) -> None:
    """Take the node out of Quarterdeck, and our key off it if it can be reached. Raises `Problem` while it is used."""
    if node.replicas.exists() or node.heads.filter(deployments__isnull=False).exists():
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
