"""How Quarterdeck itself gets into a server: its own key in authorized_keys, and whether root can be had there."""

from __future__ import annotations

from django.utils.translation import gettext as _

from controlplane.problems import Problem
from controlplane.secrets import Secret
from nodes.hosts import identity
from nodes.models import Node
from nodes.remote.command import script
from nodes.remote.host import Host, ask

#: What an operator may say of root: find out what there is; sudo with a password, which is kept; not to use it at all.
AUTO, WITH_PASSWORD, NO_ROOT = "auto", "password", "none"

_INSTALL_KEY = """
umask 077
mkdir -p "$HOME/.ssh"
touch "$HOME/.ssh/authorized_keys"
LC_ALL=C grep -qxF "$1" "$HOME/.ssh/authorized_keys" || {
    [ -z "$(tail -c 1 "$HOME/.ssh/authorized_keys")" ] || echo >> "$HOME/.ssh/authorized_keys"
    echo "$1" >> "$HOME/.ssh/authorized_keys"
}
"""
# Replaced as a whole or not at all: on a full disk nobody may lose their keys. grep's status 1: no line is left; and in
# another locale than C it leaves out lines that are not in its encoding, and so people's keys.
_REMOVE_KEY = """
f="$HOME/.ssh/authorized_keys"
[ -f "$f" ] || exit 0
umask 077
new="$f.quarterdeck"
cp -p "$f" "$new"
{ LC_ALL=C grep -vxF "$1" "$f" || [ $? -eq 1 ]; } > "$new" || { rm -f "$new"; exit 1; }
mv "$new" "$f"
"""
# -k: what sudo remembers of an earlier password is no proof. The password comes on standard input.
_ASK_ROOT = """
[ "$(id -u)" != 0 ] || { echo root; exit; }
command -v sudo > /dev/null || { echo none; exit; }
if sudo -n -k true 2> /dev/null; then echo passwordless
elif [ "$1" = password ] && sudo -k -S -p "" true 2> /dev/null; then echo password
else echo none
fi
"""


def own_line() -> str:
    """Quarterdeck's own public key, as it stands in authorized_keys."""
    return f"{identity().public_key} quarterdeck"


def install_key(host: Host) -> None:
    """Add our own key to the user's authorized_keys, once. Raises `HostProblem`."""
    ask(host, script(_INSTALL_KEY, own_line()))


def remove_key(host: Host) -> None:
    """Take our own key out of the user's authorized_keys again. Raises `HostProblem`."""
    ask(host, script(_REMOVE_KEY, own_line()))


def root_there(host: Host, wanted: str, password: Secret) -> Node.Sudo:
    """How root is had on the server, of what the operator allows. Raises `Problem` where sudo refuses the password."""
    if wanted == NO_ROOT:
        return Node.Sudo.NONE
    found = ask(host, script(_ASK_ROOT, wanted), stdin=password.reveal().encode() + b"\n").text.strip()
    if wanted == WITH_PASSWORD and found == "none":
        raise Problem(
            _("sudo on %(where)s does not take this password.") % {"where": host.where},
            _("Type it again, or choose to go without root. The user may also be missing in the group sudo or wheel."),
        )
    return Node.Sudo(found) if found in Node.Sudo.values else Node.Sudo.NONE
