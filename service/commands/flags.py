"""What the commands share: flags that stand for settings, the running of a command, and the words of its failures."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import traceback
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from service.failures import Failure, Misused

if TYPE_CHECKING:
    from pydantic import ValidationError

    from service.settings import Settings

T = TypeVar("T")

PANEL = "Settings (a flag wins over the environment)"
INTERNAL = 4  # exit code: a fault of this program, which should be reported
INTERRUPTED = 130  # exit code: Ctrl-C, as shells count it
SECRETS = {"database_url", "sasl_password", "ssl_key_password"}

# A table that goes into a file or a pipe is not squeezed into the width of a terminal.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False)

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="Postgres: postgresql://user:password@host:port/database. (REVERSAL_DATABASE_URL, which keeps a "
        "password out of the list of processes.)",
        rich_help_panel=PANEL,
    ),
]
BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        metavar="HOST:PORT,…",
        help="Kafka's brokers to begin with. (REVERSAL_KAFKA__BOOTSTRAP_SERVERS)",
        rich_help_panel=PANEL,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
OrgId = Annotated[
    int, typer.Option("--org", metavar="N", min=1, max=2**63 - 1, help="The org (tenant) that it belongs to.")
]


def settings_with(**flags: Any) -> Settings:
    """The settings from the environment, with the flags that were given in their place; `kafka__group_id` is nested."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.settings import Settings

    given: dict[str, Any] = {}
    for name, value in flags.items():
        if value is not None:
            *path, last = name.split("__")
            place = given
            for step in path:
                place = place.setdefault(step, {})
            place[last] = value
    try:
        return Settings(**given)
    except ValidationError as error:
        raise Misused(_faults(error)) from None
    except SettingsError as error:
        raise Misused(f"{error}; use REVERSAL_KAFKA__… and REVERSAL_TOPICS__…, a variable for each setting") from None


def _faults(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_url=False):
        path = [str(step) for step in fault["loc"]]
        # The input of a fault of several settings together is all of them, secrets too.
        hidden = path[-1:] == [] or path[-1] in SECRETS or not isinstance(fault["input"], str | int | float | None)
        value = "" if hidden else f" is {str(fault['input'])!r}:"
        words = fault["msg"].removeprefix("Value error, ")  # ours begin as they are meant to
        words = words if words != fault["msg"] else words[0].lower() + words[1:]
        lines.append(f"REVERSAL_{'__'.join(path).upper()}{value} {words}")
    return "\n       ".join(lines) + "\n`points-reversal settings --help` tells where settings come from"


@contextmanager
def told() -> Iterator[None]:
    """Whatever fails inside becomes a line on the error output, and the exit code."""
    try:
        yield
    except Failure as failure:
        fail(failure)
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:  # whatever it is, a person reads a line and a script a code
        crash(error)


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run a command to its end, with words for its failures."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what matters of it is said in our words
    with told():
        return asyncio.run(command)
    raise AssertionError("a failure ends the command")  # for the type checker: `told` does not swallow any


def fail(failure: Failure) -> NoReturn:
    """Say what is wrong and end with its exit code."""
    err.print(f"[bold red]error:[/] {escape(str(failure))}", soft_wrap=True)
    raise typer.Exit(failure.exit_code)


def crash(error: BaseException) -> NoReturn:
    """Say that this program itself failed; the way through the code only where it is asked for."""
    if os.environ.get("REVERSAL_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exception(error)
    else:
        words = (str(error) or "no words").splitlines()[0]
        err.print(
            f"[bold red]error:[/] a fault of this program: {escape(type(error).__name__)}: {escape(words)}\n"
            f"Run it again with REVERSAL_LOG_LEVEL=debug to see where it happened.",
            soft_wrap=True,
        )
    raise typer.Exit(INTERNAL)


def print_json(document: Any) -> None:
    """One JSON document on the standard output, indented where a person looks on."""
    import orjson

    option = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
    sys.stdout.write(orjson.dumps(document, option=option | orjson.OPT_APPEND_NEWLINE).decode())
