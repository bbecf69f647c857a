"""A small shop to decide in: one customer, the contract's example redemption, and a return of part of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

from service import booking, reversal
from service.ledger import Customer, Existing, Ledger, Lot, Org, Program, Redemption
from service.outcomes import Completed, Decision, Refused
from service.records import Identifier, Return

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.outcomes import Booking
    from service.records import Feed

NOW = datetime(2026, 11, 20, 1, 30, tzinfo=UTC)
DAY = timedelta(days=1)
ORG = 7
CUSTOMER = 42
OTHER_CUSTOMER = 43
RECORD_ID = str(UUID(int=1 << 64))  # the outcome id of the record that is being decided
OTHER_RECORD_ID = str(UUID(int=2 << 64))
PHONE = Identifier("PHONE", "+65 9123 4567", "6591234567")


def points(amount: float) -> int:
    """Thousandths; for tests only, where amounts are short."""
    return round(amount * 1000)


def numbered() -> Callable[[], str]:
    """Ids that count from 1."""
    numbers = count(1)
    return lambda: str(UUID(int=next(numbers)))


def lot(lot_id: str, issued: float, remaining: float | None = None, **given: Any) -> Lot:
    """A lot of the customer in the program main that never expires, issued 100 days ago."""
    fields: dict[str, Any] = {"customer_id": CUSTOMER, "program_id": "main", "expires_at": None}
    fields |= {"issued_at": NOW - 100 * DAY} | given
    held = issued if remaining is None else remaining
    return Lot(ORG, lot_id, points=points(issued), remaining=points(held), **fields)


def redemption(redemption_id: str, redeemed: float, *lots: tuple[str, float], **given: Any) -> Redemption:
    """A redemption of the customer in the program main, 10 days ago."""
    fields: dict[str, Any] = {"customer_id": CUSTOMER, "program_id": "main", "order_id": None, "type": "RAW"}
    fields |= {"reversed": 0, "quantity": None, "reversed_quantity": None, "reward_id": None}
    fields |= {"redeemed_at": NOW - 10 * DAY} | given
    consumed = tuple((lot_id, points(taken)) for lot_id, taken in lots)
    return Redemption(ORG, redemption_id, points=points(redeemed), lots=consumed, **fields)


def ledger(*entries: Program | Customer | Lot | Redemption) -> Ledger:
    """An org's ledger at NOW: what is given, and the customers that it mentions, with the balance of each."""
    made = Ledger(now=NOW, orgs={ORG: Org(ORG)})
    for entry in entries:
        match entry:
            case Program():
                made.orgs[ORG].programs[entry.program_id] = entry
            case Customer():
                made.customers[ORG, entry.customer_id] = entry
            case Lot():
                made.lots[ORG, entry.lot_id] = entry
            case Redemption():
                put_redemption(made, entry)
    owners: list[Lot | Redemption] = [*made.lots.values(), *made.redemptions.values()]
    for owned in owners:
        made.customers.setdefault((ORG, owned.customer_id), Customer(ORG, owned.customer_id))
        made.balances[ORG, owned.customer_id, owned.program_id] = spendable(made, owned)
    return made


def put_redemption(made: Ledger, entry: Redemption) -> None:
    """A redemption as the store would have loaded it."""
    made.redemptions[ORG, entry.redemption_id] = entry
    if entry.order_id is not None:
        made.orders.setdefault((ORG, entry.order_id), []).append(entry.redemption_id)


def spendable(made: Ledger, owned: Lot | Redemption) -> int:
    """The owner's points in that program that are not expired."""
    return sum(
        lot.remaining
        for lot in made.lots.values()
        if lot.customer_id == owned.customer_id and lot.program_id == owned.program_id and not lot.expired(made.now)
    )


@dataclass
class Shop:
    """The contract's example (lots A 100 expired, B 60, C 40; redemption R-1 of order SO-1), and a return of 50.5.

    `request` holds the fields of the return; `key_names`: "same" or "another" request, where the key is taken.
    """

    ledger: Ledger
    request: dict[str, Any]
    key_names: str | None = None
    new_id: Callable[[], str] = field(default_factory=numbered)

    @property
    def program(self) -> Program:
        return self.ledger.orgs[ORG].programs["main"]

    @property
    def customer(self) -> Customer:
        return self.ledger.customers[ORG, CUSTOMER]

    @property
    def redemption(self) -> Redemption:
        return self.ledger.redemptions[ORG, "R-1"]

    def held(self) -> dict[str, float]:
        """What each lot holds."""
        return {lot.lot_id: lot.remaining / 1000 for lot in self.ledger.lots.values()}

    def decide(self, deadline: datetime | None = None) -> Decision:
        request = Return(**self.request)
        if self.key_names is not None:
            print_of_it = request.fingerprint() if self.key_names == "same" else b"another"
            existing = Existing(b'{"published": "before"}', print_of_it, OTHER_RECORD_ID)
            self.ledger.keys[ORG, request.key] = existing
        return reversal.decide(request, RECORD_ID, self.ledger, self.new_id, deadline)

    def give_back(self, amount: float | None = None, **given: Any) -> Decision:
        """Decide another return of R-1, under its own key, and apply it."""
        fields: dict[str, Any] = {"redemption_id": "R-1"} | given
        if amount is not None:
            fields |= asking(amount)
        key = f"K-{self.new_id()}"
        decision = reversal.decide(Return(ORG, key, **fields), self.new_id(), self.ledger, self.new_id)
        reversal.apply(self.ledger, decision)
        return decision

    def book(self, feed: Feed) -> Booking:
        """Book a feed record and apply it."""
        result = booking.book(feed, self.ledger, self.new_id)
        booking.apply(self.ledger, result)
        return result


def shop(**rules: Any) -> Shop:
    """The shop, with rules of the program main that differ from the mildest."""
    made = ledger(
        Program(ORG, "main", **({"is_default": True, "decimals": 1} | rules)),
        Program(ORG, "side"),
        Customer(ORG, CUSTOMER, sequence=16),
        Customer(ORG, OTHER_CUSTOMER),
        lot("A", 100, 0, expires_at=NOW - DAY),
        lot("B", 60, 0, expires_at=NOW + DAY),
        lot("C", 40, 0),
        redemption("R-1", 200, ("A", 100), ("B", 60), ("C", 40), order_id="SO-1"),
    )
    made.identifiers[ORG, PHONE.type, PHONE.lookup] = CUSTOMER
    made.identifiers[ORG, "EMAIL", "other@example.org"] = OTHER_CUSTOMER
    request = {"org_id": ORG, "key": "RMA-77/1", "redemption_id": "R-1", "identifier": PHONE}
    return Shop(made, request | asking(50.5))


def asking(amount: float) -> dict[str, Any]:
    """The fields of a return that asks for points."""
    text = f"{amount:.3f}".rstrip("0").rstrip(".")
    return {
        "points": points(amount),
        "points_text": text,
        "points_decimals": len(text.partition(".")[2]),
    }


def refused(decision: Decision) -> Refused:
    assert isinstance(decision, Refused), decision
    return decision


def completed(decision: Decision) -> Completed:
    assert isinstance(decision, Completed), decision
    return decision
