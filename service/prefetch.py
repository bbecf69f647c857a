"""Loads all that a batch's decisions read: resolves its customers, locks them, then reads what is committed by then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

import orjson

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
    bookers: set[CustomerId] = field(default_factory=set)  # of redemptions to be booked

    @classmethod
    def of(cls, messages: Iterable[Message]) -> Needs:
        """What the messages refer to."""
        needs = cls()
        for message in messages:
            needs.add(message)
        return needs

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
        self.bookers.add((org_id, feed.customer_id))
        if feed.order_id is not None:
            self.booked_orders.add((org_id, feed.order_id))
        if feed.lots is None:
            self.consumers.add((org_id, feed.customer_id))
        else:
            self.lots.update((org_id, lot_id) for lot_id, _ in feed.lots)


@dataclass(slots=True)
class Locked:
    """What a batch has under lock: lanes, by id their epoch and stored offset, and customers. `asked`: those whom it could
    name by itself; `created`: by this transaction."""

    lanes: dict[int, tuple[int, int]]
    customers: dict[CustomerId, Customer]
    asked: set[CustomerId]
    created: set[CustomerId]


async def lock(
    connection: Connection, lanes: list[int], needs: Needs, customers: set[CustomerId], patience: str | None = None
) -> Locked:
    """Lock the lanes and the customers that the batch is about, `customers` besides. `patience`: for how long the
    transaction waits for any one lock, as Postgres' lock_timeout; None: for as long as its session does."""
    asked = customers | needs.mentioned | needs.named
    created: set[CustomerId] = set()
    if needs.mentioned:
        rows = await connection.fetch(sql("create_customers"), *columns(needs.mentioned, 2), patience)
        created = {(row[0], row[1]) for row in rows}
    rows = await connection.fetch(
        sql("lock_batch"),
        array(lanes),
        *columns(asked, 2),
        *columns(needs.redemptions, 2),
        *columns(needs.orders, 2),
        *columns(needs.identifiers, 3),
        patience,
    )
    owned = {
        lane_id: (epoch, offset) for lane_id, epoch, offset in zip(*(one or () for one in rows[0][:3]), strict=True)
    }
    found = {(row[3], row[4]): Customer(*row[3:]) for row in rows if row[3] is not None}
    return Locked(owned, found, asked, created)


async def prefetch(
    connection: Connection,
    needs: Needs,
    locked: Locked,
    *,
    due: Sequence[Waiting],
    clock: datetime | None,
    release_records: int,
    divisible: bool,
    max_record_bytes: int,
) -> Ledger:
    """Load what the batch needs, its customers being locked.

    `due`: waiting records that the batch is about too; `clock`: a frozen decision moment. Raises Restart when the batch
    turns out to be about customers that it did not lock; and Crowded when `release_records` would leave waiting records
    out of a batch that is `divisible`.
    """
    ledger, waits = await _load(connection, needs, locked, clock)
    waiting = list(due)
    if waits:
        waiting, left_out = await _load_waiting(connection, needs, due, locked, release_records, max_record_bytes)
        if left_out and divisible:
            raise Crowded(f"more than {release_records} waiting records may be set free")
        for one in waiting:
            needs.add(one.message)
        ledger, _ = await _load(connection, needs, locked, clock)
    wanted = needs.mentioned | needs.named
    owners = {(one.org_id, one.customer_id) for one in ledger.redemptions.values()}
    owners |= {(key[0], customer_id) for key, customer_id in ledger.identifiers.items()}
    # An owner, or a customer whose org was just configured, may not have been there yet when the others were locked.
    owners |= {customer for customer in needs.mentioned if customer[0] in ledger.orgs}
    if not wanted <= locked.asked | locked.customers.keys() or not owners <= locked.customers.keys():
        raise Restart("the batch is about more customers than it locked", locked.asked | wanted | owners)
    for one in waiting:
        ledger.add_waiting(one)
    return ledger


async def _load_waiting(
    connection: Connection,
    needs: Needs,
    due: Sequence[Waiting],
    locked: Locked,
    limit: int,
    max_record_bytes: int,
) -> tuple[list[Waiting], bool]:
    """The waiting feed records of the customers, and the waiting returns of redemptions that may be booked: those of
    the batch, then those of the waiting feed records just found; and whether the limit may have left some out."""
    customers = locked.customers.keys() | needs.mentioned
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
    return list(found.values()), left_out


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


async def _load(connection: Connection, needs: Needs, locked: Locked, clock: datetime | None) -> tuple[Ledger, bool]:
    """What is there of all that the batch needs, and whether there may be waiting records that it sets free."""
    row = await connection.fetchrow(
        sql("load_batch"),
        clock,
        array(sorted(needs.orgs)),
        *columns(needs.keys, 2),
        *columns(needs.redemptions, 2),
        *columns(needs.orders, 2),
        *columns(needs.identifiers, 3),
        *columns(needs.lots, 2),
        *columns(needs.consumers, 2),
        *columns(needs.bookers, 2),
        *columns(locked.customers.keys() | needs.mentioned, 2),
        *columns(needs.booked_redemptions, 2),
        *columns(needs.booked_orders, 2),
    )
    assert row is not None
    cells = iter(row)
    known = {key: customer for key, customer in locked.customers.items() if key not in locked.created}
    ledger = Ledger(now=next(cells), customers=known)  # a new one comes in with what is booked for it
    for org_id, reversal_enabled, *program in _rows(cells, 15):
        org = ledger.orgs.setdefault(org_id, Org(org_id, reversal_enabled))
        if program[0] is not None:
            org.programs[program[0]] = Program(org_id, *program)
    for org_id, key, outcome, fingerprint, outcome_id in _rows(cells, 5):
        ledger.keys[org_id, key] = Existing(outcome.encode(), fingerprint, outcome_id)
    redemptions = list(_rows(cells, 12))
    lot_ids, lot_points = (orjson.loads(next(cells) or "[]") for _ in range(2))
    for redemption, ids, points in zip(redemptions, lot_ids, lot_points, strict=True):
        lots = tuple(zip(ids, points, strict=True))
        ledger.redemptions[redemption[0], redemption[1]] = Redemption(*(*redemption, lots))
    _list_orders(needs, ledger)
    ledger.identifiers = {(org_id, kind, lookup): owner for org_id, kind, lookup, owner in _rows(cells, 4)}
    for lot in _rows(cells, 9):
        ledger.lots[lot[0], lot[1]] = Lot(*lot)
    for redeemed in ledger.redemptions.values():
        ledger.balances[redeemed.org_id, redeemed.customer_id, redeemed.program_id] = 0
    for org_id, customer_id in needs.bookers:
        for program_id in ledger.orgs[org_id].programs if org_id in ledger.orgs else ():
            ledger.balances[org_id, customer_id, program_id] = 0
    for org_id, customer_id, program_id, sum_of_points in _rows(cells, 4):
        ledger.balances[org_id, customer_id, program_id] = int(sum_of_points)
    for org_id, customer_id, program_id, moment in _rows(cells, 4):
        ledger.reversal_times.setdefault((org_id, customer_id, program_id), []).append(moment)
    return ledger, next(cells)


def _rows(cells: Iterator[Any], width: int) -> Iterable[tuple[Any, ...]]:
    """The next rows of an answer that has an array for each of their columns."""
    arrays = list(islice(cells, width))
    return () if arrays[0] is None else zip(*arrays, strict=True)


def _list_orders(needs: Needs, ledger: Ledger) -> None:
    for org_id, order_id in needs.orders:
        ledger.orders[org_id, order_id] = []
    for redemption in ledger.redemptions.values():
        listed = ledger.orders.get((redemption.org_id, redemption.order_id or ""))
        if listed is not None:
            listed.append(redemption.redemption_id)
    for listed in ledger.orders.values():
        listed.sort(key=str.encode)
