"""The commands about records on their way: lanes, parked, dlq."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.commands.flags import (
    AsJson,
    BootstrapServers,
    DatabaseUrl,
    err,
    out,
    print_json,
    run,
    settings_with,
)
from service.failures import Wrong

if TYPE_CHECKING:
    from service.dlq import DeadLetter, Selection
    from service.lanes import Lane

lanes_app = typer.Typer(help="The input partitions: stored offsets, lag, owners, outbox.", no_args_is_help=True)
parked_app = typer.Typer(help="Returns and feed records that wait.", no_args_is_help=True)
dlq_app = typer.Typer(
    help="Dead letters: records that could not be read, attributed or booked. Their topics keep them as long as Kafka "
    "is told to; replaying does not take them away.",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    """Give the commands to the application."""
    app.add_typer(lanes_app, name="lanes")
    app.add_typer(parked_app, name="parked")
    app.add_typer(dlq_app, name="dlq")


@lanes_app.command(name="list")
def list_lanes(
    as_json: AsJson = False, database_url: DatabaseUrl = None, bootstrap_servers: BootstrapServers = None
) -> None:
    """Every input partition: stored offset, start and end of its log, lag, owner, outbox, what waits.

    The stored offset is the one that counts; those that the consumer group commits to Kafka only serve other tools.
    """

    async def command() -> list[Lane]:
        from service.lanes import lanes
        from service.session import session

        settings = settings_with(database_url=database_url, kafka__bootstrap_servers=bootstrap_servers)
        async with session(settings) as connection:
            return await lanes(connection, settings)

    found = run(command())
    if as_json:
        print_json({"lanes": [lane.document() for lane in found]})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("lane")
    for column in ("stored", "start", "end", "lag", "outbox", "waiting", "epoch"):
        table.add_column(column, justify="right")
    table.add_column("owner")
    for lane in found:
        numbers = (
            lane.next_offset,
            lane.start_offset,
            lane.end_offset,
            lane.lag,
            lane.outbox,
            lane.waiting,
            lane.epoch,
        )
        cells = ["–" if number is None else str(number) for number in numbers]
        if lane.lag is None and lane.next_offset is not None:
            cells[3] = "[red]out of range[/]" if lane.end_offset is not None else "[red]not on Kafka[/]"
        table.add_row(f"{lane.topic}/{lane.partition}", *cells, lane.owner or "–")
    out.print(table)


@lanes_app.command(name="reset")
def reset_lane(
    topic: Annotated[str, typer.Argument(help="An input topic.")],
    partition: Annotated[int, typer.Argument(min=0, help="One of its partitions.")],
    to: Annotated[
        str, typer.Option("--to", metavar="start|end|OFFSET", help="Where to go on: the next record to take.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    database_url: DatabaseUrl = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Set a stored offset, after a topic was recreated or cut, or retention passed it.

    Says first what that skips or repeats, and asks. A process that has the partition need not be stopped: a lane that
    has stopped goes on from there within seconds, another one with the partition's next record.

    Example: `points-reversal lanes reset order.returned 2 --to start`
    """

    async def command() -> None:
        from service.lanes import plan_reset, reset
        from service.session import session

        settings = settings_with(database_url=database_url, kafka__bootstrap_servers=bootstrap_servers)
        async with session(settings) as connection:
            plan = await plan_reset(connection, settings, topic, partition, to)
            out.print(escape(plan.words()), soft_wrap=True)
            if not yes and not typer.confirm("Set it?"):
                raise Wrong("nothing was changed")
            epoch = await reset(connection, plan)
            out.print(f"{topic}/{partition} goes on at {plan.to} (epoch {epoch})", soft_wrap=True)

    run(command())


@parked_app.command(name="list")
def list_parked(
    org: Annotated[int | None, typer.Option(metavar="N", min=1, max=2**63 - 1, help="Only this org.")] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Most records to list, the oldest first.")] = 100,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """The returns and feed records that wait: for what, and until when."""

    async def command() -> tuple[list[dict[str, Any]], int]:
        from service.parked import parked
        from service.session import session

        async with session(settings_with(database_url=database_url)) as connection:
            return await parked(connection, org, rows)

    found, count = run(command())
    if as_json:
        print_json({"waiting": count, "parked": found})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("record", "kind", "org", "waits for", "since", "until"):
        table.add_column(column, overflow="fold")
    for one in found:
        place = f"{one['topic']}/{one['partition']}@{one['offset']}"
        table.add_row(place, one["kind"], str(one["orgId"]), escape(_awaited(one)), one["parkedAt"], one["deadline"])
    out.print(table if found else "nothing waits")
    if count > len(found):
        out.print(f"… and {count - len(found):,} more")


def _awaited(one: dict[str, Any]) -> str:
    if one["redemptionId"] is not None:
        return f"redemption {one['redemptionId']}"
    return f"order {one['orderId']}" if one["orderId"] is not None else str(one["waitsFor"])


Topic = Annotated[
    str | None, typer.Option(metavar="NAME", help="The input topic, or its dead-letter topic. Default: all.")
]
Partition = Annotated[int | None, typer.Option(metavar="N", min=0, help="The partition of the dead-letter topic.")]
Offset = Annotated[int | None, typer.Option(metavar="N", min=0, help="The offset in it; with --topic and --partition.")]
Reason = Annotated[str | None, typer.Option(metavar="NAME", help="Only those of this dlq.reason, such as not_json.")]


@dlq_app.command(name="list")
def list_dead_letters(
    topic: Topic = None,
    partition: Partition = None,
    offset: Offset = None,
    reason: Reason = None,
    latest: Annotated[int, typer.Option(metavar="N", min=1, help="Only so many of each partition, the newest.")] = 50,
    every: Annotated[bool, typer.Option("--all", help="All of them, not only the latest.")] = False,
    as_json: AsJson = False,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """List dead letters: where they lie, why, and which record each was.

    Example: `points-reversal dlq list --topic order.returned --reason not_json`
    """
    selection = _selection(topic, partition, offset, reason)

    async def command() -> None:
        import orjson

        from service.dlq import dead_letters

        settings = settings_with(kafka__bootstrap_servers=bootstrap_servers)
        count = 0
        if as_json:
            sys.stdout.write('{"deadLetters":[')
        async with aclosing(dead_letters(settings, selection, None if every else latest)) as letters:
            async for letter in letters:
                if as_json:
                    sys.stdout.write("," * (count > 0) + orjson.dumps(letter.document()).decode())
                else:
                    _print_line(letter)
                count += 1
        if as_json:
            sys.stdout.write("]}\n")
        elif not count:
            out.print("no dead letters")

    run(command())


@dlq_app.command(name="show")
def show_dead_letter(
    topic: Annotated[str, typer.Option(metavar="NAME", help="The input topic, or its dead-letter topic.")],
    partition: Annotated[int, typer.Option(metavar="N", min=0, help="The partition of the dead-letter topic.")],
    offset: Annotated[int, typer.Option(metavar="N", min=0, help="The offset in it.")],
    as_json: AsJson = False,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Show one dead letter whole: why it lies there, its headers, its value.

    Example: `points-reversal dlq show --topic order.returned --partition 0 --offset 17`
    """

    async def command() -> DeadLetter:
        from service.dlq import dead_letter

        settings = settings_with(kafka__bootstrap_servers=bootstrap_servers)
        return await dead_letter(settings, topic, partition, offset)

    letter = run(command())
    document = letter.document(whole=True)
    if as_json:
        print_json(document)
        return
    _print_line(letter)
    for header in document["headers"]:
        out.print(f"  [bold]{escape(header['name'])}[/]: {escape(str(header['value']))}", soft_wrap=True)
    out.print(f"  [bold]key[/]: {escape(str(document['key']))}", soft_wrap=True)
    out.print("  no value" if document["value"] is None else escape(document["value"]), soft_wrap=True)


@dlq_app.command(name="replay")
def replay_dead_letters(
    topic: Topic = None,
    partition: Partition = None,
    offset: Offset = None,
    reason: Reason = None,
    every: Annotated[bool, typer.Option("--all", help="All that the other flags leave.")] = False,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Put dead letters back on their topics, bytes and headers as they were, with a `replay-of` header.

    Name one by --topic, --partition and --offset, or say --all. Safe to repeat: a return that has its outcome by now
    gets no second effect. What was too large or corrupt has no value and cannot be replayed.

    Example: `points-reversal dlq replay --topic points.redeemed --reason not_bookable --all`
    """
    selection = _selection(topic, partition, offset, reason)
    if offset is None and not every:
        raise typer.BadParameter("name one dead letter by --topic, --partition and --offset, or say --all")

    async def command() -> tuple[int, int]:
        from service.dlq import dead_letter, dead_letters, replay

        settings = settings_with(kafka__bootstrap_servers=bootstrap_servers)
        if offset is not None:
            assert topic is not None
            assert partition is not None
            await dead_letter(settings, topic, partition, offset)  # or it says that there is none
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
            task = progress.add_task("replaying")
            count = 0

            def say(letter: DeadLetter, why_not: str | None) -> None:
                nonlocal count
                if why_not is None:
                    count += 1
                    progress.update(task, description=f"{count:,} replayed")
                else:
                    err.print(f"{letter.place} cannot be replayed: {escape(why_not)}", soft_wrap=True)

            async with aclosing(dead_letters(settings, selection, None)) as letters:
                return await replay(settings, letters, say)

    done, left = run(command())
    out.print(f"{done:,} replayed" + (f", {left:,} cannot be" if left else ""))
    if left and not every:
        raise typer.Exit(1)


def _selection(topic: str | None, partition: int | None, offset: int | None, reason: str | None) -> Selection:
    from service.dlq import Selection
    from service.records import DeadLetterReason

    if partition is not None and topic is None:
        raise typer.BadParameter("--partition goes with --topic")
    if offset is not None and partition is None:
        raise typer.BadParameter("--offset goes with --topic and --partition")
    if reason is not None and reason not in list(DeadLetterReason):
        raise typer.BadParameter(f"{reason} is none of {', '.join(DeadLetterReason)}", param_hint="--reason")
    return Selection(topic, partition, offset, reason)


def _print_line(letter: DeadLetter) -> None:
    original = letter.original
    was = f"{original.topic}/{original.partition}@{original.offset}" if original else "an unknown record"
    words = (
        f"{letter.place}  was {was}  [bold]{escape(letter.reason or 'no reason')}[/]: {escape(letter.message or '')}"
    )
    out.print(words, soft_wrap=True)
