"""Why a host could not be used, as sentences for people."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.translation import gettext as _

from controlplane.problems import Problem


class HostProblem(Problem):
    """A host could not be reached or refused; nothing was changed on it.

    ``passing``: it may be gone in a moment by itself, so whoever has time waits and tries again.
    """

    passing = False


class Unreachable(HostProblem):
    """No answer, or not an SSH server."""

    passing = True

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            _("%(where)s cannot be reached: %(why)s.") % {"where": where, "why": why},
            _("Check the address and port, that the server is up, and that no firewall is in between."),
        )


class SignInRefused(HostProblem):
    """The host answered and did not accept the credentials."""

    def __init__(self, where: str, user: str, offered: str, allowed: Sequence[str] = ()) -> None:
        what = _("%(where)s refused the sign-in of %(user)s with %(offered)s.") % {
            "where": where, "user": user, "offered": offered}
        check = _("Check the user name and what you signed in with, and that the server allows this way of signing in.")
        ways = _("It allows only: %(ways)s.") % {"ways": ", ".join(allowed)} if allowed else ""
        super().__init__(what, f"{check} {ways}".strip())


class BadKey(HostProblem):
    """A private key that cannot be used."""


class HostKeyChanged(HostProblem):
    """The host shows another key than the pinned one; ``offered`` is the line it shows now."""

    def __init__(self, where: str, offered: str) -> None:
        super().__init__(
            _("%(where)s shows another host key than the one that was approved, so nothing was sent to it.")
            % {"where": where},
            _("If the server was reinstalled, an admin can compare and approve the new key on its page. "
              "If not, somebody may be in between."),
        )
        self.offered = offered


class TimedOut(HostProblem):
    """The host took longer than the time given to a command."""

    passing = True

    def __init__(self, where: str, seconds: float) -> None:
        super().__init__(
            _("%(where)s did not answer within %(seconds)d s.") % {"where": where, "seconds": seconds},
            _("It may be overloaded. Quarterdeck tries again by itself."),
        )


class NotWritten(HostProblem):
    """A file could not be written there."""

    def __init__(self, where: str, path: str, why: str) -> None:
        super().__init__(
            _("%(path)s could not be written on %(where)s: %(why)s.") % {"path": path, "where": where, "why": why},
            _("See that its disk is not full, that the directory is the user's, and that its SSH server has SFTP."),
        )


class CommandFailed(HostProblem):
    """A short command on the host ended with another status than 0."""

    def __init__(self, where: str, status: int, output: str) -> None:
        super().__init__(
            _("A command on %(where)s ended with status %(status)d: %(output)s")
            % {"where": where, "status": status, "output": output or _("it printed nothing")},
            _("The message comes from the server; mend what it names and try again."),
        )
        self.status = status
