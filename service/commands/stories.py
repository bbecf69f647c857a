"""`show`: the story of one thing, in tables or as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from service.commands.flags import AsJson, DatabaseUrl, OrgId, out, print_json, run, settings_with

if TYPE_CHECKING:
    import asyncpg

    from service.settings import Settings

Document = dict[str, Any]

app = typer.Typer(
    help="The story of one thing: a reversal, redemption, customer, order or reward. Exits 1 where there is none.",
    no_args_is_help=True,
)


def add_to(application: typer.Typer) -> None:
    """Give the commands to the application."""
    application.add_typer(app, name="show")


@app.command()
def reversal(
    name: Annotated[str, typer.Argument(metavar="ID", help="The reversal's id, or its idempotency key.")],
    org: OrgId,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """A reversal as it was published.

    Example: `points-reversal show reversal RMA-77/1 --org 7 --json`
    """
    _show("reversal", name, org, as_json, database_url, _print_reversal)


@app.command()
def redemption(
    name: Annotated[str, typer.Argument(metavar="ID", help="The redemption's id.")],
    org: OrgId,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """A redemption: the lots that it consumed, what was given back, what was refused.

    Example: `points-reversal show redemption R-5001 --org 7`
    """
    _show("redemption", name, org, as_json, database_url, _print_redemption)


@app.command()
def order(
    name: Annotated[str, typer.Argument(metavar="ID", help="The order's id.")],
    org: OrgId,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """An order: its redemptions with their reversals, and everything that was refused of it.

    Example: `points-reversal show order SO-1881 --org 7`
    """
    _show("order", name, org, as_json, database_url, _print_order)


@app.command()
def reward(
    name: Annotated[str, typer.Argument(metavar="ID", help="The reward's id.")],
    org: OrgId,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """A reward: how many of it were redeemed, and whether it is in stock.

    Example: `points-reversal show reward W-1 --org 7`
    """
    _show("reward", name, org, as_json, database_url, _print_reward)


@app.command()
def customer(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="The customer's id, or an identifier: PHONE:+6591234567, EMAIL:…")
    ],
    org: OrgId,
    latest: Annotated[int, typer.Option(metavar="N", min=0, help="Most reversals, and most refusals, to show.")] = 100,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """A customer: status, identifiers, balances by program, lots with their expiry, latest reversals and refusals.

    Example: `points-reversal show customer PHONE:+6591234567 --org 7`
    """

    async def story(connection: asyncpg.Connection, settings: Settings) -> Document:
        from service import show

        return await show.customer(connection, org, name, latest=latest, clock=settings.test_clock)

    _print(_read(story, database_url), as_json, _print_customer)


def _show(
    kind: str, name: str, org: int, as_json: bool, database_url: str | None, print_table: Callable[[Document], None]
) -> None:
    async def story(connection: asyncpg.Connection, _settings: Settings) -> Document:
        from service import show

        return await show.STORIES[kind](connection, org, name)

    _print(_read(story, database_url), as_json, print_table)


def _read(story: Callable[[asyncpg.Connection, Settings], Awaitable[Document]], database_url: str | None) -> Document:
    async def command() -> Document:
        from service.session import session

        settings = settings_with(database_url=database_url)
        async with (
            session(settings) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            return await story(connection, settings)

    return run(command())


def _print(document: Document, as_json: bool, print_table: Callable[[Document], None]) -> None:
    if as_json:
        print_json(document)
        return
    import orjson

    print_table(orjson.loads(orjson.dumps(document)))  # the published bytes in it, read


def _facts(rows: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", "–" if value is None else escape(str(value)))
    out.print(table)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]], empty: str) -> None:
    if not rows:
        out.print(f"\n[bold]{title}[/]: {empty}")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in NUMBERS else "left")
    for row in rows:
        table.add_row(*("–" if value is None else escape(str(value)) for value in row))
    out.print(f"\n[bold]{title}[/]")
    out.print(table)


NUMBERS = {"points", "remaining", "restored", "available", "expired", "sequence", "code"}


def _print_reversal(document: Document) -> None:
    split, left = document["pointsReversedDetails"], document["redemption"]
    identifier = document["identifier"]
    _facts({
        "reversal": document["reversalId"],
        "of redemption": document["redemptionId"],
        "order": document["orderId"],
        "program": document["programId"],
        "customer": document["customerId"],
        "named as": f"{identifier['type']} {identifier['value']}" if identifier else None,
        "decided at": document["createdAt"],
        "sequence": document["sequence"],
        "key": document["idempotencyKey"],
        "return": document["returnId"],
        "reason": document["reason"],
        "asked": document["pointsToBeReversed"],
        "given back": f"{document['pointsReversed']} ({split['available']} available, {split['expired']} expired)",
        "units": document["quantity"],
        "redemption now": f"{left['reversed']} of {left['points']} given back, {left['remaining']} remain",
        "balance then": document["balance"]["available"],
        "journal entry": document["journalEntryId"],
    })  # fmt: skip
    lots = [
        (lot["lotId"], lot["points"], lot["expiresAt"] or "never", "expired" if lot["expired"] else "spendable",
         lot.get("restoredFrom"))
        for lot in document["lots"]
    ]  # fmt: skip
    _table("lots", ("lot", "points", "expires", "", "carries on"), lots, "none")
    for warning in document["warnings"]:
        out.print(f"\n[yellow]warning[/] {escape(warning['name'])}: {escape(warning['message'])}", soft_wrap=True)


def _print_redemption(document: Document) -> None:
    units = "" if document["quantity"] is None else f", {document['quantity']} units"
    _facts({
        "redemption": document["redemptionId"],
        "order": document["orderId"],
        "customer": document["customerId"],
        "program": document["programId"],
        "type": document["type"],
        "points": f"{document['points']}{units}",
        "given back": document["reversed"],
        "remaining": document["remaining"],
    })  # fmt: skip
    lots = [(lot["lotId"], lot["points"], lot["restored"]) for lot in document["lots"]]
    _table("lots, in the order in which they were consumed", ("lot", "points", "restored"), lots, "none were kept")
    _print_decisions(document)


def _print_order(document: Document) -> None:
    count = len(document["redemptions"])
    out.print(f"[bold]order[/] {escape(document['orderId'])}: {count} redemption{'' if count == 1 else 's'}")
    for one in document["redemptions"]:
        out.print()
        _print_redemption({**one, "refusals": []})
    _print_refusals(document["refusals"])


def _print_reward(document: Document) -> None:
    _facts({
        "reward": document["rewardId"],
        "status": document["status"],
        "redeemed": document["redeemedCount"],
        "of at most": document["maxTotal"],
    })  # fmt: skip


def _print_customer(document: Document) -> None:
    _facts({
        "customer": document["customerId"],
        "status": document["status"],
        "locked until": document["lockedUntil"],
        "identifiers": ", ".join(f"{one['type']} {one['value']}" for one in document["identifiers"]) or None,
        "decisions": document["sequence"],
    })  # fmt: skip
    _table("balances", ("program", "available"), list(document["balances"].items()), "none")
    lots = [
        (lot["lotId"], lot["programId"], lot["points"], lot["remaining"], lot["expiresAt"] or "never",
         "expired" if lot["expired"] else "")
        for lot in document["lots"]
    ]  # fmt: skip
    _table("lots", ("lot", "program", "points", "remaining", "expires", ""), lots, "none")
    _print_decisions(document)


def _print_decisions(document: Document) -> None:
    rows = [
        (one["sequence"], one["createdAt"], one["redemptionId"], one["pointsReversed"],
         one["pointsReversedDetails"]["available"], one["pointsReversedDetails"]["expired"], one["idempotencyKey"])
        for one in document["reversals"]
    ]  # fmt: skip
    columns = ("sequence", "decided at", "redemption", "points", "available", "expired", "key")
    _table("reversals", columns, rows, "none")
    if document["refusals"]:
        _print_refusals(document["refusals"])


def _print_refusals(refusals: list[Document]) -> None:
    rows = [
        (one["failedAt"], one["code"], one["name"], one["message"], one["idempotencyKey"],
         f"{one['topic']}/{one['partition']}@{one['offset']}")
        for one in refusals
    ]  # fmt: skip
    _table("refused", ("decided at", "code", "name", "message", "key", "record"), rows, "nothing")
