"""How a server becomes a node: its host key is offered and approved, a sign-in is proven, our own key takes over.

What the operator typed (a password, a private key) is used once, to install Quarterdeck's own key, and then forgotten,
unless it is to be kept for sudo. Nothing is written to the database before all of that has worked. Many servers are
registered at the same time, each in its own time: a bad one delays nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.utils.translation import get_language, override
from django.utils.translation import gettext as _

from controlplane.problems import Problem
from controlplane.secrets import NO_SECRET, Secret
from nodes import hosts, tasks
from nodes.access import AUTO, install_key, root_there
from nodes.candidates import SignIn
from nodes.hosts import identity, jump_host, own_login
from nodes.models import Bastion, Node
from nodes.names import is_address, is_name, why_no_address
from nodes.preparation import check, gather
from nodes.remote import ssh
from nodes.remote.errors import HostKeyChanged, SignInRefused
from nodes.remote.ssh import HostKey, SshHost

#: Servers that are worked on at the same time; each costs a thread, and one that is mute nothing else for seconds.
AT_ONCE = 100


@dataclass(frozen=True)
class Login:
    """What an operator typed to register a server. Raises `Problem` where a field cannot be right.

    ``agent``: sign in with Quarterdeck's own key, which is there already, or a key of the SSH agent. ``root``: how root
    is had there (see `access.root_there`), with ``sudo_password`` if that needs one.
    """

    name: str
    address: str
    port: int
    user: str
    password: Secret = NO_SECRET
    private_key: Secret = NO_SECRET
    passphrase: Secret = NO_SECRET
    agent: bool = False
    root: str = AUTO
    sudo_password: Secret = NO_SECRET
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise Problem(
                _("%(name)r cannot be a node's name.") % {"name": self.name[:80]},
                _("Use letters, digits and hyphens, at most 63, beginning and ending with a letter or digit."),
            )
        if not is_address(self.address):
            raise Problem(
                why_no_address(self.address),
                _("Enter something like 172.18.81.126 or te1.lab; the port has its own field."),
            )

    @property
    def ssh(self) -> ssh.SshLogin:
        key = identity().private_key if self.agent else self.private_key
        return ssh.SshLogin(
            self.name, self.address, self.port, self.user, self.password, key, self.passphrase, self.agent)


class Way(NamedTuple):
    """Through which jump host a server is reached: a node, a bastion, or neither."""

    jump: Node | None = None
    bastion: Bastion | None = None

    def host(self) -> SshHost | None:
        return jump_host(self.jump, self.bastion)


DIRECT = Way()


def offered_key(login: Login, way: Way = DIRECT) -> HostKey:
    """The host key the server shows, for a person to compare. Nothing is sent to it; checks the name is free first."""
    check_is_new(login)
    if login.private_key.reveal():
        ssh.read_key(login.private_key, login.passphrase)
    return ssh.offered_key(login.address, login.port, login.name, way.host())


def check_is_new(login: Login) -> None:
    """Raises `Problem` where the name or the login is registered already."""
    if Node.objects.filter(name=login.name).exists():
        raise Problem(_("A node named %(name)s exists already.") % {"name": login.name}, _("Choose another name."))
    known = Node.objects.filter(address=login.address, port=login.port, user=login.user).first()
    if known is not None:
        raise Problem(
            _("%(user)s@%(address)s:%(port)d is registered already, as %(node)s.")
            % {"user": login.user, "address": login.address, "port": login.port, "node": known.name},
            _("Open that node instead, or remove it first."),
        )


def register(login: Login, key_line: str, by: User | None, way: Way = DIRECT) -> Node:
    """Sign in to the server that holds the approved key, install our own key, prove it works, make the node.

    Its facts are gathered over the same connection; where that fails a check is begun, which says why. Raises
    `Problem` with nothing changed here; on the server at most our public key was added.
    """
    check_is_new(login)
    through = way.host()
    with ssh.connect(login.ssh, HostKey(key_line), through) as host:
        install_key(host)
        root = root_there(host, login.root, login.sudo_password)
    node = Node(name=login.name, address=login.address, port=login.port, user=login.user, host_key=key_line, sudo=root,
                sudo_password=login.sudo_password if root == Node.Sudo.PASSWORD else "", jump=way.jump,
                bastion=way.bastion, labels=list(login.labels))
    own = _with_own_key(node, through)
    try:
        _save(node)
    except Problem:
        own.close()
        raise
    hosts.keep(node, own)
    _look_at(node, by)
    return node


def register_bastion(login: Login, key_line: str) -> Bastion:
    """As `register`, for a jump host that is to be no node; one that is known already is used as it is pinned."""
    with ssh.connect(login.ssh, HostKey(key_line)) as host:
        install_key(host)
    bastion = Bastion(address=login.address, port=login.port, user=login.user, host_key=key_line)
    _with_own_key(bastion, None).close()
    saved, _made = Bastion.objects.get_or_create(
        address=login.address, port=login.port, user=login.user, defaults={"host_key": key_line})
    if saved.host_key != key_line:
        raise HostKeyChanged(str(saved), key_line)
    return saved


def _with_own_key(server: Node | Bastion, through: SshHost | None) -> SshHost:
    try:
        return ssh.connect(own_login(server), HostKey(server.host_key), through)
    except SignInRefused as error:
        raise Problem(
            _("%(name)s took Quarterdeck's key into ~/.ssh/authorized_keys but does not accept it.")
            % {"name": str(server)},
            _("Allow PubkeyAuthentication in its sshd_config, and see that ~/.ssh belongs to the user with mode 0700."),
        ) from error


def register_local(by: User | None) -> Node:
    """Make this machine a node, or return it if it is one."""
    found = Node.objects.filter(kind=Node.Kind.LOCAL).first()
    if found is not None:
        return found
    node = Node(name="local", kind=Node.Kind.LOCAL, address="127.0.0.1", root=settings.LOCAL_NODE_ROOT)
    _save(node)
    check(node, by)
    return node


def _save(node: Node) -> None:
    try:
        with transaction.atomic():
            node.save()
    except IntegrityError as error:
        raise Problem(_("This server was just registered by somebody else."), _("Look for it in the list.")) from error
    transaction.on_commit(tasks.poke_watch)


def _look_at(node: Node, by: User | None) -> None:
    try:
        gather(node)
    except Problem:
        check(node, by)
    else:
        if node.rest_state != node.state:
            node.move(node.rest_state)


def opened(sign_in: SignIn) -> SignIn:
    """The sign-in with its private key opened, for many servers. Raises `Problem` where the passphrase does not fit."""
    if not sign_in.passphrase.reveal():
        return sign_in
    return replace(
        sign_in, private_key=ssh.opened(sign_in.private_key, sign_in.passphrase), passphrase=NO_SECRET)


# --- many at once -----------------------------------------------------------------------------------------------


T = TypeVar("T")
R = TypeVar("R")


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R | Problem]:
    """Do the work for each item, many at the same time; a `Problem` stands in the place of the result it prevented."""
    language = get_language()

    def guarded(item: T) -> R | Problem:
        try:
            with override(language):
                return work(item)
        except Problem as problem:
            return problem
        finally:
            connection.close()  # this thread's own

    if len(items) < 2:
        return [_told(work, item) for item in items]
    with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(items))) as pool:
        return list(pool.map(guarded, items))


def _told(work: Callable[[T], R], item: T) -> R | Problem:
    try:
        return work(item)
    except Problem as problem:
        return problem


def offered_keys(logins: Sequence[Login], way: Way = DIRECT) -> list[HostKey | Problem]:
    """The host keys of many servers, or why there is none; in the order of the logins."""
    return at_once(lambda login: offered_key(login, way), logins)


def register_many(
    approved: Sequence[tuple[Login, str]], by: User | None, way: Way = DIRECT
) -> list[Node | Problem]:
    """Register servers (login, approved host key) at the same time: the nodes, or why not, in the same order.

    Facts are gathered by the time it returns. The servers are new ones: each login stands in it once.
    """
    identity()  # made once, before many ask for it
    return at_once(lambda each: register(*each, by, way), approved)


# --- a changed host key -----------------------------------------------------------------------------------------


def approve(host: Node | Bastion, by: User | None) -> None:
    """Pin the key that a node or jump host shows now, which a person compared."""
    if isinstance(host, Node):
        approve_new_key(host, by)
    else:
        approve_new_bastion_key(host, by)


def approve_new_key(node: Node, by: User | None) -> None:
    """Pin the key the host shows now in place of the old one, and look at the node again."""
    if not node.offered_host_key:
        raise Problem(_("%(node)s shows the key that is pinned.") % {"node": node.name})
    node.host_key, node.offered_host_key = node.offered_host_key, ""
    node.save(update_fields=["host_key", "offered_host_key"])
    check(node, by)


def approve_new_bastion_key(bastion: Bastion, by: User | None) -> None:
    """Pin the key that the jump host shows now; the nodes behind it are looked at again."""
    if not bastion.offered_host_key:
        raise Problem(_("%(node)s shows the key that is pinned.") % {"node": str(bastion)})
    bastion.host_key, bastion.offered_host_key = bastion.offered_host_key, ""
    bastion.save(update_fields=["host_key", "offered_host_key"])
    for node in bastion.reached_through.all():
        node.poke()
