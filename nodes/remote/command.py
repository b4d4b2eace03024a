"""Everything said to a host is a `Command`: a value, quoted by its type, with secrets masked by theirs.

Nothing here touches a host. A command is built from typed parts and rendered twice: `sh()` for the wire,
`masked()` for people and logs. Text that a person typed only ever becomes an argument, an environment value
or a file, never a part of a script.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from controlplane.secrets import Secret

NOTHING: Mapping[str, str] = MappingProxyType({})
NO_FILES: Mapping[str, bytes] = MappingProxyType({})


def quote(text: str) -> str:
    """One shell word that the remote side's argv receives exactly as it is. Raises ValueError on NUL."""
    raw = text.reveal() if isinstance(text, Secret) else text
    if "\0" in raw:
        raise ValueError("a NUL character cannot be passed to a program")
    return shlex.quote(raw)


def _masked(text: str) -> str:
    return str(text) if isinstance(text, Secret) else quote(text)


@dataclass(frozen=True)
class Command:
    """A program and its arguments, with environment, directory and the files it needs.

    ``files`` (name → content) are laid, mode 0600, into the job's own directory before a job starts; the command
    finds them under ``$QD_JOB``. They are for jobs: `Host.run` takes standard input instead.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    cwd: str = ""
    files: Mapping[str, bytes] = field(default_factory=lambda: NO_FILES)

    def sh(self) -> str:
        """The command as one line for a POSIX shell, secrets in the clear."""
        return self._render(quote)

    def masked(self) -> str:
        """The same line for people: secrets masked."""
        return self._render(_masked)

    def with_env(self, env: Mapping[str, str]) -> Command:
        return replace(self, env=MappingProxyType({**self.env, **env}))

    def with_files(self, files: Mapping[str, bytes]) -> Command:
        return replace(self, files=MappingProxyType({**self.files, **files}))

    def _render(self, word: Callable[[str], str]) -> str:
        parts = [word(part) for part in self.argv]
        if self.env:
            parts = ["env", *(f"{_name(key)}={word(value)}" for key, value in self.env.items()), *parts]
        line = " ".join(parts)
        return f"cd {word(self.cwd)} && {line}" if self.cwd else line


def _name(key: str) -> str:
    if not key.replace("_", "a").isalnum() or not key.isascii() or key[0].isdigit():
        raise ValueError(f"{key!r} is not the name of an environment variable")
    return key


def command(*argv: str, env: Mapping[str, str] = NOTHING, cwd: str = "") -> Command:
    """``command("pip", "install", name)``: a program with its arguments."""
    return Command(tuple(argv), env=MappingProxyType(dict(env)), cwd=cwd)


def script(text: str, *args: str, env: Mapping[str, str] = NOTHING, cwd: str = "") -> Command:
    """A POSIX shell script that is a constant of ours; what varies comes as ``$1 $2 …``.

    ``text`` must be a literal: format nothing into it.
    """
    return command("sh", "-euc", text, "sh", *args, env=env, cwd=cwd)


def python(interpreter: str, source: str, *args: str, env: Mapping[str, str] = NOTHING) -> Command:
    """A Python program that is a constant of ours, run with ``interpreter``; what varies is in ``sys.argv[1:]``."""
    return command(interpreter, "-c", source, *args, env=env)
