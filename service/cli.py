"""`points-reversal`: the application, put together from service/commands."""

from __future__ import annotations

from typing import Annotated

import typer

from service import __version__
from service.commands import ledger, servers, stories, streams

EPILOG = (
    "Exit codes: 0 all is well; 1 what was asked about is not (an invariant is broken, a line is faulty, nothing "
    "found); 2 a flag, an argument or a setting is wrong; 3 Postgres or Kafka cannot be reached; 4 a fault of this "
    "program."
)

app = typer.Typer(
    name="points-reversal",
    help="Gives loyalty points back when an order is returned: Kafka in, one Postgres transaction, Kafka out, exactly "
    "once.\n\n"
    "Settings come from the environment (REVERSAL_…; `points-reversal settings` lists them), flags win. To look around "
    "without any server: `points-reversal demo`",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"points-reversal {__version__}")
        raise typer.Exit


@app.callback()
def _application(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Nothing to do before a command."""


for module in (servers, ledger, stories, streams):
    module.add_to(app)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
