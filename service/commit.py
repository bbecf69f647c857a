"""Writes a decided batch down: what returns come to in one statement, what feeds bring table by table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.batch import Batch, Settled
from service.copy_text import array
from service.headers import kept, written
from service.ledger import CustomerId, Entry, Ledger, Lot, LotId, Redemption, RedemptionId, Waiting
from service.outbox import Outgoing
from service.outcomes import Completed, Issued, Redeemed, Refused, Repeated, Unchanged, Updated
from service.published import encode_refused
from service.records import KINDS, CustomerUpdated, PointsIssued, PointsRedeemed, Record, Return, value
from service.store import Connection, LaneLost, Restart, columns, sql

ENDS = ("completed", "failed", "booked", "unchanged", "repeated", "dead")


def end(settled: Settled) -> str:
    """Under which of ENDS a lane counts it; an 804 counts as failed."""
    match settled.result:
        case Completed():
            return "completed"
        case Refused():
            return "failed"
        case Issued() | Redeemed() | Updated():
            return "booked"
        case Unchanged():
            return "unchanged"
        case Repeated():
            return "repeated"
        case _:
            return "dead"


Points = defaultdict[tuple[int, str], int]


def _points() -> Points:
    return defaultdict(int)


@dataclass(slots=True)
class Changes:
    """A batch's rows, added up: one per target."""

    lots: Points = field(default_factory=_points)  # by lot: to add to what it holds
    redemptions: Points = field(default_factory=_points)  # by redemption: to add to what was given back
    units: Points = field(default_factory=_points)  # by redemption
    customers: set[CustomerId] = field(default_factory=set)  # whose row changes
    updated: set[CustomerId] = field(default_factory=set)  # those of which more than the sequence changes
    identified: dict[tuple[int, str, str], str] = field(default_factory=dict)  # identifiers with their value as given
    replaced: set[CustomerId] = field(default_factory=set)  # customers whose identifiers were replaced
    rewards: list[tuple[int, str, int]] = field(default_factory=list)  # units in order: more or fewer redeemed
    new_lots: set[LotId] = field(default_factory=set)
    new_redemptions: set[RedemptionId] = field(default_factory=set)
    reversals: list[tuple[Any, ...]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    refusals: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, settled: Settled, ledger: Ledger) -> None:
        """Take in one end."""
        match settled.result:
            case Completed() as completed:
                self._add_completed(settled, completed, ledger)
            case Refused() as refused:
                self._add_refused(settled, refused)
            case Issued() as issued:
                self.new_lots.add((issued.lot.org_id, issued.lot.lot_id))
                self.entries.append(issued.entry)
            case Redeemed() as redeemed:
                self._add_redeemed(redeemed)
            case Updated() as updated:
                self._add_updated(updated.feed)

    def _add_completed(self, settled: Settled, completed: Completed, ledger: Ledger) -> None:
        redemption, request = completed.redemption, completed.request
        target = (redemption.org_id, redemption.redemption_id)
        self.redemptions[target] += completed.points
        self.units[target] += completed.units or 0
        for lot in completed.new_lots:
            self.new_lots.add((lot.org_id, lot.lot_id))
        for part in completed.parts:
            self.lots[redemption.org_id, part.lot_id] += part.points
        if completed.units and redemption.reward_id is not None:
            self.rewards.append((redemption.org_id, redemption.reward_id, -completed.units))
        self.customers.add((redemption.org_id, redemption.customer_id))
        self.entries.append(completed.entry)
        self.reversals.append((
            request.org_id, completed.reversal_id, request.key, redemption.customer_id, redemption.program_id,
            redemption.redemption_id, completed.entry.entry_id, completed.points, completed.available,
            completed.expired, completed.units, completed.sequence, completed.created_at, settled.lane_id,
            settled.record.offset, settled.record.outcome_id,
            ledger.keys[request.org_id, request.key].fingerprint, settled.outcome.decode(),
        ))  # fmt: skip

    def _add_refused(self, settled: Settled, refused: Refused) -> None:
        request, error = refused.request, refused.errors[0]
        if refused.customer_id is not None:
            self.customers.add((request.org_id, refused.customer_id))
        outcome = settled.outcome if refused.existing is None else encode_refused(refused, with_existing=False)
        self.refusals.append((
            request.org_id, settled.lane_id, settled.record.offset, settled.record.outcome_id, request.key,
            error.code.number, error.code.label, error.message, refused.customer_id, refused.sequence,
            refused.redemption_id, refused.order_id, refused.failed_at, outcome.decode(),
        ))  # fmt: skip

    def _add_redeemed(self, redeemed: Redeemed) -> None:
        redemption = redeemed.redemption
        self.new_redemptions.add((redemption.org_id, redemption.redemption_id))
        for lot_id, points in redemption.lots:
            self.lots[redemption.org_id, lot_id] -= points
        if redemption.reward_id is not None and redemption.quantity:
            self.rewards.append((redemption.org_id, redemption.reward_id, redemption.quantity))
        self.entries.append(redeemed.entry)

    def _add_updated(self, feed: CustomerUpdated) -> None:
        customer = (feed.org_id, feed.customer_id)
        self.customers.add(customer)
        self.updated.add(customer)
        if feed.identifiers is not None:
            self.replaced.add(customer)
            for identifier in feed.identifiers:
                self.identified[feed.org_id, identifier.type, identifier.lookup] = identifier.value


async def _update(connection: Connection, name: str, rows: Iterable[tuple[Any, ...]], width: int) -> None:
    """Run an update that must find each of its targets."""
    targets = list(rows)
    if not targets:
        return
    status = await connection.execute(sql(name), *columns(targets, width))
    found = int(status.rsplit(" ", 1)[1])
    if found != len(targets):
        raise AssertionError(f"{name} found {found} of {len(targets)} rows under lock")


async def _write_customers(connection: Connection, ledger: Ledger, changes: Changes) -> None:
    rows = []
    for key in sorted(changes.updated):
        customer = ledger.customers[key]
        rows.append((*key, customer.status, customer.locked_until, customer.sequence, customer.updated_at))
    await _update(connection, "update_customers", rows, 6)
    if changes.replaced:
        await connection.execute(sql("clear_identifiers"), *columns(changes.replaced, 2))
        owners = ledger.identifiers
        dropped = [key for key in changes.identified if key not in owners]
        if dropped:
            await connection.execute(sql("drop_identifiers"), *columns(dropped, 3))
        put = [(*key, value, owners[key]) for key, value in changes.identified.items() if key in owners]
        if put:
            await connection.execute(sql("put_identifiers"), *columns(put, 5))


@value
class Share:
    """A lane's part of a transaction, and how the lane moves with it. `last`: the last record taken, if any;
    `acknowledged`: the outbox is on Kafka up to here; `position`: of the first outbox row."""

    batch: Batch
    outbox: list[Outgoing]
    epoch: int
    next_offset: int
    last: Record | None
    taken: int
    acknowledged: int
    position: int


async def write(connection: Connection, ledger: Ledger, created: set[CustomerId], shares: Sequence[Share]) -> None:
    """Write all of a transaction. `created`: customers that it made. Raises Restart where another lane settled one of the
    waiting records meanwhile, LaneLost where another process has a lane."""
    changes = Changes()
    for share in shares:
        for settled in share.batch.settled:
            changes.add(settled, ledger)
    lots = [ledger.lots[key] for key in sorted(changes.new_lots)]
    redemptions = [ledger.redemptions[key] for key in sorted(changes.new_redemptions)]
    await _write_customers(connection, ledger, changes)
    await _write_new(connection, lots, redemptions)
    still = changes.customers | {(lot.org_id, lot.customer_id) for lot in lots}
    still |= {(one.org_id, one.customer_id) for one in redemptions}
    if created - still:
        await connection.execute(sql("delete_customers"), *columns(created - still, 2))
    await _write_waiting(connection, shares)
    await _write_rewards(connection, changes)
    counts = [await _settle_lanes(connection, share.batch) for share in shares]
    await _write_batch(connection, changes, ledger, shares, counts)


async def _write_batch(
    connection: Connection, changes: Changes, ledger: Ledger, shares: Sequence[Share], counts: Sequence[Counter[str]]
) -> None:
    """Sequences, points, what is appended, and the lanes. New lots and redemptions stand as they are at the end; the
    others are added to."""
    sequences = sorted((*key, ledger.customers[key].sequence) for key in changes.customers - changes.updated)
    lots = [(*key, points) for key, points in changes.lots.items() if points and key not in changes.new_lots]
    redemptions = [
        (*key, points, changes.units[key])
        for key, points in changes.redemptions.items()
        if key not in changes.new_redemptions
    ]
    outbox = [
        (share.batch.lane_id, position, *_outgoing_row(one))
        for share in shares
        for position, one in enumerate(share.outbox, share.position)
    ]
    found = await connection.fetchrow(
        sql("write_batch"),
        *columns(map(_lane_row, shares, counts), 13),
        *columns(sequences, 3),
        *columns(lots, 3),
        *columns(redemptions, 4),
        *columns(changes.reversals, 18, plain=(16, 17)),
        *columns(map(_entry_row, changes.entries), 9, plain=(6, 7, 8)),
        *columns(changes.refusals, 14, plain=(13,)),
        *columns(outbox, 10, plain=(7, 8, 9)),
    )
    assert found is not None
    if found["lane"] != len(shares):
        raise LaneLost("a lane was taken over within a transaction that had locked it")
    for table, targets in (("customer", sequences), ("lot", lots), ("redemption", redemptions)):
        if found[table] != len(targets):
            raise AssertionError(f"{found[table]} of {len(targets)} rows of {table} were there under lock")


def _lane_row(share: Share, counts: Counter[str]) -> tuple[Any, ...]:
    last = share.last
    return (
        share.batch.lane_id, share.epoch, share.next_offset, last and last.offset, last and last.timestamp_ms, share.taken,
        *(counts[end] for end in ENDS), share.acknowledged,
    )  # fmt: skip


def _entry_row(entry: Entry) -> tuple[Any, ...]:
    accounts, subjects, points = zip(*entry.postings, strict=True)
    return (
        entry.org_id, entry.entry_id, entry.kind, entry.created_at, entry.customer_id, entry.redemption_id,
        array(accounts), array(subjects), array(points),
    )  # fmt: skip


def _outgoing_row(one: Outgoing) -> tuple[Any, ...]:
    return (
        one.id, one.aggregatetype, one.aggregateid, one.type, one.topic, one.key, one.payload,
        written(one.headers),
    )  # fmt: skip


async def _write_new(connection: Connection, lots: list[Lot], redemptions: list[Redemption]) -> None:
    await _copy(connection, "lot", LOT, [
        (lot.org_id, lot.lot_id, lot.customer_id, lot.program_id, lot.points, lot.remaining, lot.expires_at,
         lot.issued_at, lot.restored_from)
        for lot in lots
    ])  # fmt: skip
    await _copy(connection, "redemption", REDEMPTION, [
        (one.org_id, one.redemption_id, one.customer_id, one.program_id, one.order_id, one.type, one.points,
         one.reversed,
         one.quantity, one.reversed_quantity, None if one.quantity is None else 0, one.reward_id, one.redeemed_at,
         [lot_id for lot_id, _ in one.lots], [points for _, points in one.lots])
        for one in redemptions
    ])  # fmt: skip


async def _write_waiting(connection: Connection, shares: Sequence[Share]) -> None:
    settled = [
        (one.lane_id, one.record.offset, one.record.timestamp_ms)
        for share in shares
        for one in share.batch.settled
        if one.waited
    ]
    if settled:
        status = await connection.execute(sql("delete_waiting"), *columns(settled, 3))
        if int(status.rsplit(" ", 1)[1]) != len(settled):
            raise Restart("another lane settled a waiting record")
    parked = shares[0].batch.parked  # those of all shares
    await _copy(connection, "waiting", WAITING, [_waiting_row(one) for one in parked.values()])


def _waiting_row(waiting: Waiting) -> tuple[Any, ...]:
    """What a record waits by: a feed record by its customer, a return by its redemption, else by its order."""
    record, message = waiting.record, waiting.message
    customer_id = redemption_id = order_id = None
    if isinstance(message, Return):
        kind, redemption_id = "order.returned", message.redemption_id
        order_id = message.order_id if redemption_id is None else None
        org_id = message.org_id
    else:
        assert isinstance(message, CustomerUpdated | PointsIssued | PointsRedeemed)
        kind, org_id, customer_id = str(KINDS[type(message)]), message.org_id, message.customer_id
    return (
        waiting.lane_id, record.offset, record.timestamp_ms, kind, org_id, customer_id, redemption_id, order_id,
        waiting.waits_for, waiting.parked_at, waiting.deadline, record.key, record.value, written(kept(record.headers)),
    )  # fmt: skip


async def _write_rewards(connection: Connection, changes: Changes) -> None:
    """Rewards are shared by customers: locked late, in one order, and counted in the order of the decisions."""
    if not changes.rewards:
        return
    rows = await connection.fetch(
        sql("lock_rewards"), *columns({(org_id, reward_id) for org_id, reward_id, _ in changes.rewards}, 2)
    )
    rewards = {
        (row["org_id"], row["reward_id"]): [row["max_total"], row["redeemed_count"], row["status"]] for row in rows
    }
    for org_id, reward_id, units in changes.rewards:
        reward = rewards.get((org_id, reward_id))
        if reward is None:  # a reward that `load` never named keeps no count
            continue
        most, count, status = reward
        count = max(0, count + units)
        if most is not None:
            if units < 0 and status == "OUT_OF_STOCK" and count < most:
                status = "ACTIVE"
            elif units > 0 and status == "ACTIVE" and count >= most:
                status = "OUT_OF_STOCK"
        reward[1:] = [count, status]
    await _update(connection, "update_rewards", [(*key, one[1], one[2]) for key, one in rewards.items()], 4)


async def _settle_lanes(connection: Connection, batch: Batch) -> Counter[str]:
    """Count the ends of this lane's records, and write the counts of other lanes' waiting records."""
    own: Counter[str] = Counter()
    others: dict[int, Counter[str]] = {}
    for settled in batch.settled:
        counts = own if settled.lane_id == batch.lane_id else others.setdefault(settled.lane_id, Counter())
        counts[end(settled)] += 1
    if others:
        kinds = ("completed", "failed", "booked", "unchanged", "dead")
        rows = [(lane_id, *(counts[kind] for kind in kinds)) for lane_id, counts in others.items()]
        await connection.execute(sql("settle_lanes"), batch.lane_id, *columns(rows, 6))
    return own


async def _copy(connection: Connection, table: str, names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    if rows:
        await connection.copy_records_to_table(table, records=rows, columns=names)


LOT = (
    "org_id",
    "lot_id",
    "customer_id",
    "program_id",
    "points",
    "remaining",
    "expires_at",
    "issued_at",
    "restored_from",
)
REDEMPTION = (
    "org_id", "redemption_id", "customer_id", "program_id", "order_id", "type", "points", "reversed", "quantity",
    "reversed_quantity", "imported_reversed_quantity", "reward_id", "redeemed_at", "lot_ids", "lot_points",
)  # fmt: skip
WAITING = (
    "lane_id", "record_offset", "timestamp_ms", "kind", "org_id", "customer_id", "redemption_id", "order_id",
    "waits_for", "parked_at", "deadline", "record_key", "value", "headers",
)  # fmt: skip
