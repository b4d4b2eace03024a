"""How a job's command is run as root on a node: as the user it already is, or through sudo. Pure."""

from __future__ import annotations

from controlplane.secrets import Secret
from nodes.remote.command import Command, script

#: How root is had: the user is root, sudo asks nothing, or sudo asks for the user's password. "": it is not.
ROOT, PASSWORDLESS, PASSWORD, NO_ROOT = "root", "passwordless", "password", ""

# sudo empties the environment, so what the command needs is handed on by name.
_QUIETLY = 'exec sudo -n -- env QD_JOB="$QD_JOB" PYTHONUNBUFFERED=1 "$@"'
# -k: were the password remembered from a moment ago, sudo would leave it unread for the command to find.
_ASKED = """
exec 3< "$QD_JOB/sudo"
rm -f "$QD_JOB/sudo"
exec sudo -k -S -p "" -- env QD_JOB="$QD_JOB" PYTHONUNBUFFERED=1 "$@" <&3
"""


def as_root(command: Command, how: str, password: Secret) -> Command:
    """The job's command, run by root. The password goes through a file of the job, which is gone once it is read.

    Raises ValueError for a command with a secret in its environment: it would stand in sudo's argument list.
    """
    if how == ROOT:
        return command
    if any(isinstance(value, Secret) for value in command.env.values()) or command.cwd or how == NO_ROOT:
        raise ValueError("this command cannot be handed to sudo")
    words = [*(f"{name}={value}" for name, value in command.env.items()), *command.argv]
    if how == PASSWORDLESS:
        return script(_QUIETLY, *words).with_files(command.files)
    return script(_ASKED, *words).with_files({**command.files, "sudo": password.reveal().encode() + b"\n"})
