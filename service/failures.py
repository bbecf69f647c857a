"""How a command ends when it does not end well: what a person reads, and the exit code that a script reads."""

from __future__ import annotations

from typing import ClassVar


class Failure(Exception):
    """A command's end; the message names the thing, the value and the way out, and never holds a secret."""

    exit_code: ClassVar[int] = 1


class Wrong(Failure):
    """What was asked about is wrong or not there."""


class Misused(Failure):
    """A flag, an argument or a setting cannot be what was given."""

    exit_code = 2


class Unreachable(Failure):
    """Postgres or Kafka does not answer, or not to us."""

    exit_code = 3
