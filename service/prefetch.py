"""Loads all that a batch's decisions read: resolves its customers, locks them, then reads what is committed by then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from service.copy_text import array
from service.events import decode
from service.headers import read
from service.ledger import (
    Customer,
    CustomerId,
    Existing,
    Ledger,
    Lot,
    LotId,
    Org,
    Program,
    Redemption,
    RedemptionId,
    Waiting,
)
from service.records import (
    CustomerUpdated,
    Kind,
    Message,
    PointsIssued,
    PointsRedeemed,
    Record,
    Return,
)
from service.store import Connection, Crowded, Restart, columns, sql


@dataclass(slots=True)
class Needs:
    """What a batch's messages refer to; each entry leads with its org."""

    orgs: set[int] = field(default_factory=set)
    mentioned: set[CustomerId] = field(default_factory=set)  # by feeds: created where they are new
    named: set[CustomerId] = field(default_factory=set)  # by ID identifiers
    identifiers: set[tuple[int, str, str]] = field(default_factory=set)
    redemptions: set[RedemptionId] = field(default_factory=set)
    orders: set[tuple[int, str]] = field(default_factory=set)
    keys: set[tuple[int, str]] = field(default_factory=set)
    lots: set[LotId] = field(default_factory=set)
    consumers: set[CustomerId] = field(default_factory=set)  # whose lots the service chooses
    booked_redemptions: set[RedemptionId] = field(default_factory=set)
    booked_orders: set[tuple[int, str]] = field(default_factory=set)
    booked_programs: set[tuple[int, int, str | None]] = field(default_factory=set)

    def add(self, message: object) -> None:
        """Note what one message refers to."""
        match message:
            case Return():
                self._add_return(message)
            case CustomerUpdated():
                self._mention(message.org_id, message.customer_id)
                for identifier in message.identifiers or ():
                    self.identifiers.add((message.org_id, identifier.type, identifier.lookup))
            case PointsIssued():
                self._mention(message.org_id, message.customer_id)
                self.lots.add((message.org_id, message.lot_id))
            case PointsRedeemed():
                self._add_redeemed(message)

    def _mention(self, org_id: int, customer_id: int) -> None:
        self.orgs.add(org_id)
        self.mentioned.add((org_id, customer_id))

    def _add_return(self, request: Return) -> None:
        org_id = request.org_id
        self.orgs.add(org_id)
        self.keys.add((org_id, request.key))
        if request.redemption_id is not None:
            self.redemptions.add((org_id, request.redemption_id))
        elif request.order_id is not None:
            self.orders.add((org_id, request.order_id))
        if request.identifier is not None:
            customer_id = request.identifier.customer_id
            if customer_id is not None:
                self.named.add((org_id, customer_id))
            elif request.identifier.type != "ID":
                self.identifiers.add((org_id, request.identifier.type, request.identifier.lookup))

    def _add_redeemed(self, feed: PointsRedeemed) -> None:
        org_id = feed.org_id
        self._mention(org_id, feed.customer_id)
        self.redemptions.add((org_id, feed.redemption_id))
        self.booked_redemptions.add((org_id, feed.redemption_id))
        self.booked_programs.add((org_id, feed.customer_id, feed.program_id))
        if feed.order_id is not None:
            self.booked_orders.add((org_id, feed.order_id))
        if feed.lots is None:
            self.consumers.add((org_id, feed.customer_id))
        else:
            self.lots.update((org_id, lot_id) for lot_id, _ in feed.lots)


async def prefetch(
    connection: Connection,
    messages: Iterable[Message],
    *,
    due: Sequence[Waiting],
    customers: set[CustomerId],
    clock: datetime | None,
    release_records: int,
    divisible: bool,
    max_record_bytes: int,
) -> tuple[Ledger, set[CustomerId]]:
    """Lock and load; returns the ledger and the customers that this transaction created.

    `due`: waiting records that the batch is about too; `customers`: to be locked besides; `clock`: a frozen decision
    moment. Raises Restart when, under the lock, the batch turns out to be about customers that it did not lock; and
    Crowded when `release_records` would leave waiting records out of a batch that is `divisible`.
    """
    needs = Needs()
    for message in [*messages, *(waiting.message for waiting in due)]:
        needs.add(message)
    resolved = await connection.fetch(sql("resolve_customers"), *_sought(needs))
    asked = customers | needs.mentioned | needs.named | {(row[0], row[1]) for row in resolved}
    created: set[CustomerId] = set()
    if needs.mentioned:
        rows = await connection.fetch(sql("create_customers"), *columns(needs.mentioned, 2))
        created = {(row[0], row[1]) for row in rows}
    locked = await connection.fetch(sql("lock_customers"), *columns(asked, 2)) if asked else []

    waiting, left_out = await _load_waiting(connection, needs, due, locked, release_records, max_record_bytes)
    if left_out and divisible:
        raise Crowded(f"more than {release_records} waiting records may be set free")
    for one in waiting:
        needs.add(one.message)
    ledger = await _load_orgs(connection, needs, clock)
    ledger.customers = {(row[0], row[1]): Customer(*row) for row in locked}
    await _load_references(connection, needs, ledger)
    wanted = needs.mentioned | needs.named
    owners = {(one.org_id, one.customer_id) for one in ledger.redemptions.values()}
    owners |= {(key[0], customer_id) for key, customer_id in ledger.identifiers.items()}
    # An owner, or a customer whose org was just configured, may not have been there yet when the others were locked.
    owners |= {customer for customer in needs.mentioned if customer[0] in ledger.orgs}
    if not wanted <= asked or not owners <= ledger.customers.keys():
        raise Restart("the batch is about more customers than it locked", asked | wanted | owners)
    await _load_points(connection, needs, ledger)
    for one in waiting:
        ledger.add_waiting(one)
    return ledger, created


def _sought(needs: Needs) -> list[str]:
    return [*columns(needs.redemptions, 2), *columns(needs.orders, 2), *columns(needs.identifiers, 3)]


async def _load_waiting(
    connection: Connection,
    needs: Needs,
    due: Sequence[Waiting],
    locked: list[Any],
    limit: int,
    max_record_bytes: int,
) -> tuple[list[Waiting], bool]:
    """The waiting feed records of the customers, and the waiting returns of redemptions that may be booked: those of
    the batch, then those of the waiting feed records just found; and whether the limit may have left some out."""
    customers = {(row[0], row[1]) for row in locked} | needs.mentioned
    found = {waiting.record.place: waiting for waiting in due}
    redemptions, orders = set(needs.booked_redemptions), set(needs.booked_orders)
    left_out = False
    while customers or redemptions or orders:
        rows = await connection.fetch(
            sql("load_waiting"), *columns(customers, 2), *columns(redemptions, 2), *columns(orders, 2), limit
        )
        left_out = left_out or len(rows) == limit
        more = Needs()
        for waiting in (read_waiting(row, max_record_bytes) for row in rows):
            if waiting.record.place not in found:
                found[waiting.record.place] = waiting
                more.add(waiting.message)
        customers = set()
        redemptions, orders = more.booked_redemptions - redemptions, more.booked_orders - orders
    return sorted(found.values(), key=lambda waiting: waiting.age), left_out


def read_waiting(row: Any, max_record_bytes: int) -> Waiting:
    """A row of the table waiting, read again as the message it is."""
    record = Record(
        row["topic"],
        row["partition"],
        row["record_offset"],
        row["timestamp_ms"],
        row["record_key"],
        row["value"],
        tuple(read(row["headers"])),
    )
    message = decode(Kind(row["kind"]), record, max_record_bytes)
    return Waiting(row["lane_id"], record, message, row["deadline"], row["parked_at"], row["waits_for"])


async def _load_orgs(connection: Connection, needs: Needs, clock: datetime | None) -> Ledger:
    rows = await connection.fetch(sql("load_orgs"), array(sorted(needs.orgs)))
    ledger = Ledger(now=clock or rows[0]["moment"])
    for row in rows:
        if row["org_id"] is None:
            continue
        org = ledger.orgs.setdefault(row["org_id"], Org(row["org_id"], row["reversal_enabled"]))
        if row["program_id"] is not None:
            org.programs[row["program_id"]] = Program(row["org_id"], *row[3:])
    return ledger


async def _load_references(connection: Connection, needs: Needs, ledger: Ledger) -> None:
    """What names point to: keys, redemptions, orders, identifiers."""
    if needs.redemptions or needs.orders:
        rows: list[Any] = await connection.fetch(
            sql("load_redemptions"), *columns(needs.redemptions, 2), *columns(needs.orders, 2)
        )
        for row in rows:
            lots = tuple(zip(row[12], row[13], strict=True))
            ledger.redemptions[row[0], row[1]] = Redemption(*(*row[:12], lots))
        for org_id, order_id in needs.orders:
            ledger.orders[org_id, order_id] = []
        for redemption in ledger.redemptions.values():
            listed = ledger.orders.get((redemption.org_id, redemption.order_id or ""))
            if listed is not None:
                listed.append(redemption.redemption_id)
        for listed in ledger.orders.values():
            listed.sort(key=str.encode)
    if needs.identifiers:
        rows = await connection.fetch(sql("load_identifiers"), *columns(needs.identifiers, 3))
        ledger.identifiers = {(row[0], row[1], row[2]): row[3] for row in rows}
    if needs.keys:
        rows = await connection.fetch(sql("load_keys"), *columns(needs.keys, 2))
        ledger.keys = {(row[0], row[1]): Existing(row[2].encode(), row[3], row[4]) for row in rows}


async def _load_points(connection: Connection, needs: Needs, ledger: Ledger) -> None:
    """Lots, balances and the times that limits count."""
    lots = set(needs.lots)
    owners: set[tuple[int, int, str]] = set()
    for redemption in ledger.redemptions.values():
        lots.update((redemption.org_id, lot_id) for lot_id, _ in redemption.lots)
        owners.add((redemption.org_id, redemption.customer_id, redemption.program_id))
    for org_id, customer_id, program_id in needs.booked_programs:
        org = ledger.orgs.get(org_id)
        default = org.default_program if org is not None else None
        program_id = program_id or (default.program_id if default is not None else None)
        if program_id is not None:
            owners.add((org_id, customer_id, program_id))
    if lots:
        for row in await connection.fetch(sql("load_lots"), *columns(lots, 2)):
            ledger.lots[row[0], row[1]] = Lot(*row)
    if needs.consumers:
        for row in await connection.fetch(sql("load_filled_lots"), *columns(needs.consumers, 2)):
            ledger.lots[row[0], row[1]] = Lot(*row)
    if not needs.keys or not owners:
        return
    ledger.balances = dict.fromkeys(owners, 0)
    for row in await connection.fetch(sql("load_balances"), *columns(owners, 3), ledger.now):
        ledger.balances[row[0], row[1], row[2]] = int(row[3])
    await _load_reversal_times(connection, owners, ledger)


async def _load_reversal_times(connection: Connection, owners: set[tuple[int, int, str]], ledger: Ledger) -> None:
    limited = set()
    for org_id, customer_id, program_id in owners:
        org = ledger.orgs.get(org_id)
        program = org.programs.get(program_id) if org is not None else None
        if program is not None and program.max_reversals_count and program.max_reversals_days:
            since = ledger.now - timedelta(days=min(program.max_reversals_days, 100_000))
            limited.add((org_id, customer_id, program_id, program.max_reversals_count, since))
    if limited:
        for row in await connection.fetch(sql("load_reversal_times"), *columns(limited, 5)):
            ledger.reversal_times.setdefault((row[0], row[1], row[2]), []).append(row[3])
