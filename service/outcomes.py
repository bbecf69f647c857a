"""PURE. What a decision comes to: frozen values that the store writes down and the lane publishes."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from service.errors import Error
from service.ledger import Entry, Lot, Redemption
from service.records import CustomerUpdated, PointsIssued, PointsRedeemed, Return, value


class Part(NamedTuple):
    """Points that went back to one lot. `expired`: not spendable. `restored_from`: the expired lot whose points a new
    lot carries on (policy extend)."""

    lot_id: str
    points: int
    expires_at: datetime | None
    expired: bool
    restored_from: str | None = None


@value
class Notice:
    """Something that a reader of a completed reversal should know; the reversal stands."""

    name: str
    message: str


@value
class Completed:
    """A reversal. `asked`: what was asked, in points; `units`: the units given back of a UNIT_BASED redemption."""

    request: Return
    reversal_id: str
    redemption: Redemption  # as it stands in the ledger; after `apply` it holds the new `reversed`
    asked: int
    points: int
    available: int  # of them: those that are spendable; the others lie in expired lots
    units: int | None
    parts: tuple[Part, ...]
    new_lots: tuple[Lot, ...]  # lots that this reversal creates (policy extend, redemption without lots)
    reversed_after: int
    remaining_after: int
    balance_after: int
    sequence: int
    warnings: tuple[Notice, ...]
    entry: Entry
    created_at: datetime

    @property
    def expired(self) -> int:
        """The restored points that lie in expired lots."""
        return self.points - self.available


@value
class Refused:
    """A return that was not granted. `customer_id` and `sequence` None where the customer is unknown;
    `redemption_id` and `order_id` as found (else as asked); `existing`: the record that the key names, as published."""

    request: Return
    errors: tuple[Error, ...]
    customer_id: int | None
    sequence: int | None
    redemption_id: str | None
    order_id: str | None
    existing: bytes | None
    failed_at: datetime


@value
class Parked:
    """A return that waits for its redemption until `deadline`."""

    request: Return
    deadline: datetime


@value
class Repeated:
    """The very record that already has its reversal: nothing to do, nothing to say again."""

    request: Return


Decision = Completed | Refused | Parked | Repeated


@value
class Issued:
    """A lot booked from `points.issued`."""

    feed: PointsIssued
    lot: Lot
    entry: Entry


@value
class Redeemed:
    """A redemption booked from `points.redeemed`; `redemption.lots` are the lots it consumed, in that order."""

    feed: PointsRedeemed
    redemption: Redemption
    entry: Entry


@value
class Updated:
    """A customer brought up to date from `customer.updated`."""

    feed: CustomerUpdated


@value
class Unchanged:
    """A feed record that says what is known already (or is older than what is known)."""


@value
class Waits:
    """A feed record that cannot be booked yet; `waits_for` in plain words with the ids and numbers."""

    waits_for: str


@value
class NotBookable:
    """A feed record that never can be booked; `message` in plain words with the ids and numbers."""

    message: str


Booking = Issued | Redeemed | Updated | Unchanged | Waits | NotBookable
