"""PURE. What the ledger holds, as far as one batch needs it.

Laws: everything that a decision reads is here before the first decision; decisions are made in the records' order and
each is applied here before the next, so that a batch ends where the same records one by one would. Points are integers
of thousandths. Nothing here knows a database, a clock or randomness.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from service.records import CustomerUpdated, Message, PointsIssued, PointsRedeemed, Record, Return, value

CustomerId = tuple[int, int]  # org, customer
LotId = tuple[int, str]
RedemptionId = tuple[int, str]


@dataclass(slots=True)
class Program:
    """A loyalty program's rules; None where it sets none. Other writers than `load` may have stored contradictions."""

    org_id: int
    program_id: str
    is_default: bool = False
    live: bool = True
    decimals: int = 3
    reversal_allowed: bool = True
    allow_partial: bool = True
    reversal_window_days: int | None = None
    minimum_points: int = 0
    max_reversals_count: int | None = None
    max_reversals_days: int | None = None
    expired_lots_policy: str = "keep"
    grace_days: int | None = None
    park_unknown_seconds: int = 0


@dataclass(slots=True)
class Org:
    """A tenant with its programs by id."""

    org_id: int
    reversal_enabled: bool = True
    programs: dict[str, Program] = field(default_factory=dict)

    @property
    def default_program(self) -> Program | None:
        """The program flagged as default, else the only one, else None."""
        for program in self.programs.values():
            if program.is_default:
                return program
        return next(iter(self.programs.values())) if len(self.programs) == 1 else None


@dataclass(slots=True)
class Customer:
    """An owner of points; `sequence` counts the decisions so far."""

    org_id: int
    customer_id: int
    status: str = "active"
    locked_until: datetime | None = None
    sequence: int = 0
    updated_at: datetime | None = None


@dataclass(slots=True)
class Lot:
    """Points issued together; `expires_at` None: never."""

    org_id: int
    lot_id: str
    customer_id: int
    program_id: str
    points: int
    remaining: int
    expires_at: datetime | None
    issued_at: datetime
    restored_from: str | None = None

    def expired(self, now: datetime) -> bool:
        """Contract, "Giving points back": expired when `expiresAt <=` the moment."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(slots=True)
class Redemption:
    """Points burned on an order; `lots` (lot id, points) in the order of consumption, empty where none were kept."""

    org_id: int
    redemption_id: str
    customer_id: int
    program_id: str
    order_id: str | None
    type: str
    points: int
    reversed: int
    quantity: int | None
    reversed_quantity: int | None
    reward_id: str | None
    redeemed_at: datetime
    lots: tuple[tuple[str, int], ...] = ()

    @property
    def remaining(self) -> int:
        """The headroom."""
        return self.points - self.reversed


@value
class Existing:
    """The completed reversal that a key names: `outcome` as published, and which record it answered."""

    outcome: bytes
    fingerprint: bytes
    outcome_id: str


@dataclass(slots=True)
class Waiting:
    """A record that waits: a return for its redemption, a feed record for what it needs.

    `message` is what it reads as; ordered by `parked_at`, then lane, then offset.
    """

    lane_id: int
    record: Record
    message: Message
    deadline: datetime
    parked_at: datetime
    waits_for: str

    @property
    def age(self) -> tuple[datetime, str, int, int]:
        """Oldest first when sorted by it; of one moment, in the order of topic, partition and offset."""
        return self.parked_at, self.record.topic, self.record.partition, self.record.offset


@dataclass(slots=True)
class Ledger:
    """The loaded part. A missing entry means that the database has none (everything a batch can ask was looked up).

    `identifiers` maps (org, type, lookup) to a customer id. `orders` maps (org, order id) to redemption ids in order
    of their bytes. `reversal_times` maps (org, customer, program) to the moments of the latest reversals, newest
    first, at least as many as any rule counts. `balances` maps (org, customer, program) to spendable points at `now`.
    `feeds` holds each customer's waiting feed records, oldest first; `returns` the waiting returns by (org,
    redemption id) and by (org, order id), oldest first.
    """

    now: datetime
    orgs: dict[int, Org] = field(default_factory=dict)
    customers: dict[CustomerId, Customer] = field(default_factory=dict)
    identifiers: dict[tuple[int, str, str], int] = field(default_factory=dict)
    lots: dict[LotId, Lot] = field(default_factory=dict)
    redemptions: dict[RedemptionId, Redemption] = field(default_factory=dict)
    orders: dict[tuple[int, str], list[str]] = field(default_factory=dict)
    keys: dict[tuple[int, str], Existing] = field(default_factory=dict)
    reversal_times: dict[tuple[int, int, str], list[datetime]] = field(default_factory=dict)
    balances: dict[tuple[int, int, str], int] = field(default_factory=dict)
    feeds: dict[CustomerId, list[Waiting]] = field(default_factory=dict)
    returns_by_redemption: dict[RedemptionId, list[Waiting]] = field(default_factory=dict)
    returns_by_order: dict[tuple[int, str], list[Waiting]] = field(default_factory=dict)

    def waiting_beside(self, waiting: Waiting) -> list[Waiting]:
        """The list that a waiting record belongs to: a return waits for the redemption that it names, where it names
        none for a redemption of its order; a feed record for its customer's points."""
        match waiting.message:
            case Return(redemption_id=str() as redemption_id) as request:
                return self.returns_by_redemption.setdefault((request.org_id, redemption_id), [])
            case Return(order_id=str() as order_id) as request:
                return self.returns_by_order.setdefault((request.org_id, order_id), [])
            case CustomerUpdated() | PointsIssued() | PointsRedeemed() as feed:
                return self.feeds.setdefault((feed.org_id, feed.customer_id), [])
        return []

    def add_waiting(self, waiting: Waiting) -> None:
        """Put a waiting record into its list, oldest first: those of one moment may come in any order, see `age`."""
        insort(self.waiting_beside(waiting), waiting, key=lambda one: one.age)

    _owned: dict[CustomerId, list[Lot]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _owned_lots: int = field(default=0, init=False, repr=False, compare=False)

    def lots_of(self, org_id: int, customer_id: int) -> list[Lot]:
        """A customer's lots here, in no order. (Lots are added and never replaced, so that an index holds.)"""
        if self._owned_lots < len(self.lots):
            for lot in islice(self.lots.values(), self._owned_lots, None):
                self._owned.setdefault((lot.org_id, lot.customer_id), []).append(lot)
            self._owned_lots = len(self.lots)
        return self._owned.get((org_id, customer_id), [])


class Posting(NamedTuple):
    """One line of a journal entry: `account` is held, redeemed, issued or opening; `subject` the lot, redemption
    or program id; a positive number of points is a debit. The postings of an entry sum to zero."""

    account: str
    subject: str
    points: int


class Entry(NamedTuple):
    """A journal entry; `kind` is issue, redemption, reversal or import."""

    org_id: int
    entry_id: str
    kind: str
    created_at: datetime
    customer_id: int
    redemption_id: str | None
    postings: tuple[Posting, ...]
