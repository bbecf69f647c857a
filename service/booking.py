"""PURE. Booking what the feeds tell: customers, issued points, redeemed points (contract, "Feeds").

Laws: `book` reads the ledger and never changes it; `apply` changes it and cannot fail. A lot or redemption
is booked once: the same content again changes nothing, another is never booked. What never can be booked is
told before what only waits. A redemption takes from no lot more than it holds. Postings sum to zero.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from service.case import UNIT_BASED
from service.ledger import Customer, Entry, Ledger, Lot, Org, Posting, Redemption
from service.outcomes import Booking, Issued, NotBookable, Redeemed, Unchanged, Updated, Waits
from service.points import format_points
from service.records import CustomerUpdated, Feed, PointsIssued, PointsRedeemed

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

Consumed = tuple[tuple[str, int], ...]


def book(feed: Feed, ledger: Ledger, new_id: Callable[[], str]) -> Booking:
    """What becomes of a feed record at `ledger.now`; the customer need not exist yet."""
    fault = _never_bookable(feed)
    if fault is not None:
        return NotBookable(fault)
    org = ledger.orgs.get(feed.org_id)
    if org is None:
        return Waits(f"org {feed.org_id} to be configured")
    if isinstance(feed, PointsIssued):
        return _issue(feed, org, ledger, new_id)
    if isinstance(feed, PointsRedeemed):
        return _redeem(feed, org, ledger, new_id)
    return _update(feed, ledger)


def apply(ledger: Ledger, booking: Booking) -> None:
    """Bring the ledger to where the booking leaves it."""
    if isinstance(booking, Issued):
        _apply_issued(ledger, booking)
    elif isinstance(booking, Redeemed):
        _apply_redeemed(ledger, booking)
    elif isinstance(booking, Updated):
        _apply_updated(ledger, booking.feed)


def _never_bookable(feed: Feed) -> str | None:
    """What is wrong with a feed record in itself, whatever the ledger holds."""
    if isinstance(feed, CustomerUpdated):
        for identifier in feed.identifiers or ():
            if identifier.type == "ID" and identifier.lookup != str(feed.customer_id):
                return f"customer {feed.customer_id} cannot have another customer's ID as its identifier"
        return None
    if isinstance(feed, PointsIssued):
        return None
    what, type_ = f"redemption {feed.redemption_id}", _type(feed)
    if (type_ == UNIT_BASED) != (feed.quantity is not None):
        return f"{what} is {type_}: a quantity belongs to a {UNIT_BASED} redemption and to no other"
    if feed.lots is None:
        return None
    total = sum(points for _, points in feed.lots)
    if total != feed.points:
        return f"{what} is of {format_points(feed.points)} points, its lots add up to {format_points(total)}"
    if len({lot_id for lot_id, _ in feed.lots}) < len(feed.lots):
        return f"{what} names a lot more than once"
    return None


def _type(feed: PointsRedeemed) -> str:
    return feed.type if feed.type is not None else "RAW"


def _update(feed: CustomerUpdated, ledger: Ledger) -> Booking:
    customer = ledger.customers.get((feed.org_id, feed.customer_id))
    stored = customer.updated_at if customer is not None else None
    if stored is not None and feed.updated_at is not None and feed.updated_at < stored:
        return Unchanged()
    return Updated(feed)


def _issue(feed: PointsIssued, org: Org, ledger: Ledger, new_id: Callable[[], str]) -> Booking:
    lot = ledger.lots.get((feed.org_id, feed.lot_id))
    if lot is not None:
        given = {
            "customerId": (feed.customer_id, lot.customer_id),
            "programId": (feed.program_id, lot.program_id),
            "points": (feed.points, lot.points),
            "expiresAt": (feed.expires_at, lot.expires_at),
        }
        return _seen_before(f"lot {feed.lot_id}", given)
    program_id = _program_id(feed.program_id, org)
    if program_id is None:
        return Waits(_missing_program(feed.program_id, org))
    booked = Lot(
        org_id=feed.org_id,
        lot_id=feed.lot_id,
        customer_id=feed.customer_id,
        program_id=program_id,
        points=feed.points,
        remaining=feed.points,
        expires_at=feed.expires_at,
        issued_at=feed.issued_at if feed.issued_at is not None else ledger.now,
    )
    postings = (Posting("issued", program_id, -feed.points), Posting("held", feed.lot_id, feed.points))
    return Issued(feed, booked, _entry("issue", feed, None, postings, ledger.now, new_id))


def _redeem(feed: PointsRedeemed, org: Org, ledger: Ledger, new_id: Callable[[], str]) -> Booking:
    known = ledger.redemptions.get((feed.org_id, feed.redemption_id))
    if known is not None:
        return _seen_before(f"redemption {feed.redemption_id}", _content(feed, known))
    program_id = _program_id(feed.program_id, org)
    if program_id is None:
        return Waits(_missing_program(feed.program_id, org))
    redeemed_at = feed.redeemed_at if feed.redeemed_at is not None else ledger.now
    lots = (
        _consume(feed, program_id, redeemed_at, ledger)
        if feed.lots is None
        else _take_as_named(feed, feed.lots, program_id, ledger)
    )
    if isinstance(lots, Waits | NotBookable):
        return lots
    redemption = Redemption(
        org_id=feed.org_id,
        redemption_id=feed.redemption_id,
        customer_id=feed.customer_id,
        program_id=program_id,
        order_id=feed.order_id,
        type=_type(feed),
        points=feed.points,
        reversed=0,
        quantity=feed.quantity,
        reversed_quantity=None if feed.quantity is None else 0,
        reward_id=feed.reward_id,
        redeemed_at=redeemed_at,
        lots=lots,
    )
    held = tuple(Posting("held", lot_id, -points) for lot_id, points in lots)
    postings = (Posting("redeemed", feed.redemption_id, feed.points), *held)
    return Redeemed(feed, redemption, _entry("redemption", feed, feed.redemption_id, postings, ledger.now, new_id))


def _content(feed: PointsRedeemed, known: Redemption) -> dict[str, tuple[Any, Any]]:
    """What a redemption fed again is compared by: each field as given beside what is known."""
    return {
        "customerId": (feed.customer_id, known.customer_id),
        "orderId": (feed.order_id, known.order_id),
        "programId": (feed.program_id, known.program_id),
        "type": (feed.type, known.type),
        "points": (feed.points, known.points),
        "rewardId": (feed.reward_id, known.reward_id),
        "quantity": (feed.quantity, known.quantity),
        "lots": (feed.lots, known.lots),
    }


def _seen_before(what: str, given: dict[str, tuple[Any, Any]]) -> Booking:
    differing = [name for name, (now, before) in given.items() if now is not None and now != before]
    if not differing:
        return Unchanged()
    return NotBookable(f"{what} is known with another {', '.join(differing)}")


def _take_as_named(
    feed: PointsRedeemed, named: Consumed, program_id: str, ledger: Ledger
) -> Consumed | Waits | NotBookable:
    """The lots that the feed names, expired or not; they wait while one is unknown or holds too little."""
    lacking: str | None = None
    for lot_id, points in named:
        lot = ledger.lots.get((feed.org_id, lot_id))
        if lot is None:
            lacking = lacking or f"lot {lot_id} to be issued"
        elif lot.customer_id != feed.customer_id:
            return NotBookable(f"lot {lot_id} is not of customer {feed.customer_id}")
        elif lot.program_id != program_id:
            return NotBookable(f"lot {lot_id} is of the program {lot.program_id}, not of {program_id}")
        elif lot.remaining < points:
            wanted = format_points(points)
            lacking = lacking or f"lot {lot_id} to hold {wanted} points, it holds {format_points(lot.remaining)}"
    return Waits(lacking) if lacking is not None else named


def _consume(feed: PointsRedeemed, program_id: str, moment: datetime, ledger: Ledger) -> Consumed | Waits:
    """The customer's lots of the program in the contract's order, until the points are found."""
    lots = [
        lot
        for lot in ledger.lots_of(feed.org_id, feed.customer_id)
        if lot.program_id == program_id and lot.remaining > 0 and not lot.expired(moment)
    ]
    held = sum(lot.remaining for lot in lots)
    if held < feed.points:
        wanted, there = format_points(feed.points), format_points(held)
        who = f"customer {feed.customer_id}"
        return Waits(f"{who} to hold {wanted} points in the program {program_id}, {there} are there")
    lots.sort(key=_consumption_order)
    consumed: list[tuple[str, int]] = []
    missing = feed.points
    for lot in lots:
        if missing == 0:
            break
        taken = min(lot.remaining, missing)
        consumed.append((lot.lot_id, taken))
        missing -= taken
    return tuple(consumed)


def _consumption_order(lot: Lot) -> tuple[bool, datetime, datetime, bytes]:
    """Earliest expiry first, never-expiring last; then earliest issue; then the id by its bytes."""
    never = lot.expires_at is None
    return never, lot.expires_at or lot.issued_at, lot.issued_at, lot.lot_id.encode()


def _program_id(given: str | None, org: Org) -> str | None:
    """The program to book in: the one given, else the org's default; None where it is not there yet."""
    if given is not None:
        return given if given in org.programs else None
    default = org.default_program
    return default.program_id if default is not None else None


def _missing_program(given: str | None, org: Org) -> str:
    if given is None:
        return f"org {org.org_id} to have a default program"
    return f"program {given} of org {org.org_id} to be configured"


def _entry(
    kind: str,
    feed: PointsIssued | PointsRedeemed,
    redemption_id: str | None,
    postings: tuple[Posting, ...],
    now: datetime,
    new_id: Callable[[], str],
) -> Entry:
    return Entry(feed.org_id, new_id(), kind, now, feed.customer_id, redemption_id, postings)


def _customer(ledger: Ledger, feed: Feed) -> Customer:
    """The feed's customer, made by its first mention."""
    key = (feed.org_id, feed.customer_id)
    return ledger.customers.setdefault(key, Customer(*key))


def _apply_issued(ledger: Ledger, booking: Issued) -> None:
    lot = booking.lot
    _customer(ledger, booking.feed)
    ledger.lots[lot.org_id, lot.lot_id] = replace(lot)  # the booking keeps what it booked
    if not lot.expired(ledger.now):
        _add_to_balance(ledger, lot, lot.points)


def _apply_redeemed(ledger: Ledger, booking: Redeemed) -> None:
    redemption = booking.redemption
    _customer(ledger, booking.feed)
    for lot_id, points in redemption.lots:
        lot = ledger.lots[redemption.org_id, lot_id]
        lot.remaining -= points
        if not lot.expired(ledger.now):
            _add_to_balance(ledger, lot, -points)
    ledger.redemptions[redemption.org_id, redemption.redemption_id] = replace(redemption)
    if redemption.order_id is not None:
        listed = ledger.orders.setdefault((redemption.org_id, redemption.order_id), [])
        insort(listed, redemption.redemption_id, key=str.encode)


def _add_to_balance(ledger: Ledger, lot: Lot, points: int) -> None:
    """Only balances that were loaded are kept: one begun here would lack what went before."""
    key = (lot.org_id, lot.customer_id, lot.program_id)
    if key in ledger.balances:
        ledger.balances[key] += points


def _apply_updated(ledger: Ledger, feed: CustomerUpdated) -> None:
    customer = _customer(ledger, feed)
    if feed.status is not None:
        customer.status = feed.status
    if feed.locked_until_given:
        customer.locked_until = feed.locked_until
    if feed.updated_at is not None:
        customer.updated_at = feed.updated_at
    if feed.identifiers is None:
        return
    owned = [key for key, owner in ledger.identifiers.items() if owner == feed.customer_id]
    for key in owned:
        if key[0] == feed.org_id:
            del ledger.identifiers[key]
    for identifier in feed.identifiers:
        if identifier.type != "ID":  # an ID is no entry: it is the customer itself
            ledger.identifiers[feed.org_id, identifier.type, identifier.lookup] = feed.customer_id
