"""The demo's shop: what is in its ledger, what it sends, and what must come of each record.

What is expected is stated beside each record, or reckoned from what the sample itself put into a redemption; no rule of
the service is asked for it. Points are integers of thousandths.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import count
from typing import Any, NamedTuple

Data = dict[str, Any]
Headers = tuple[tuple[str, bytes], ...]

RETURNS, CUSTOMERS, ISSUED, REDEEMED = "order.returned", "customer.updated", "points.issued", "points.redeemed"
ORGS = 10  # ids that one run of the demo takes for its orgs
UNIT = 1000  # one point
MARKET = "points"  # the marketplace's default program
EXTENDING = ("vip",)  # programs in which points of expired lots come back as new ones
FIRST_NAMES = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Farid", "Grace", "Hana", "Ivo", "Jun", "Kofi", "Lena", "Mei")
LAST_NAMES = (
    "Abbott",
    "Bello",
    "Chua",
    "Dias",
    "Eriksen",
    "Fofana",
    "Goh",
    "Haddad",
    "Iyer",
    "Jansen",
    "Kaya",
    "Lim",
    "Mbeki",
)
REASONS = ("size does not fit", "arrived damaged", "changed my mind", "wrong colour", "late delivery", "bought twice")
FORMS = ("bare", "binary", "structured", "binary", "snake_case", "structured", "base64")


class End(StrEnum):
    """Where a record ends."""

    COMPLETED = "completed"
    FAILED = "failed"
    DEAD = "dead letter"
    BOOKED = "booked"
    WAITS = "waits"


@dataclass(frozen=True, slots=True)
class Expected:
    """What must come of a record. `name`: of the error or of the dead letter's reason; `available`, `expired`: the
    points given back."""

    end: End
    code: int | None = None
    name: str = ""
    available: int = 0
    expired: int = 0


BOOKED = Expected(End.BOOKED)
WAITS = Expected(End.WAITS)


def refused(code: int, name: str) -> Expected:
    return Expected(End.FAILED, code, name)


def dead(reason: str) -> Expected:
    return Expected(End.DEAD, None, reason)


def completed(available: int, expired: int = 0) -> Expected:
    return Expected(End.COMPLETED, None, "", available, expired)


@dataclass(frozen=True, slots=True)
class Event:
    """A record to produce on the topic of that default name, with what must come of it."""

    topic: str
    key: bytes
    value: bytes | None
    headers: Headers
    expected: Expected
    waits: bool = False  # for a record of the last act, or for good


class Customer(NamedTuple):
    """A customer, and the identifiers in the spellings in which returns name them."""

    org_id: int
    customer_id: int
    identifiers: tuple[Data, ...]


@dataclass(slots=True)
class Burned:
    """A redemption. `taken`: what is left to give back of each lot, in the order of consumption, and whether that lot
    is expired."""

    customer: Customer
    program_id: str
    redemption_id: str
    order_id: str
    points: int
    taken: list[tuple[int, bool]]
    quantity: int | None = None
    step: int = 1  # the smallest part of a point that the program knows, in thousandths
    units_back: int = 0

    def give_back(self, points: int) -> Expected:
        """Last consumed first."""
        split = {False: 0, True: 0}
        while points:
            part, expired = self.taken.pop()
            if part > points:
                self.taken.append((part - points, expired))
                part = points
            split[expired] += part
            points -= part
        return completed(split[False], split[True])

    def give_back_rest(self) -> Expected:
        self.units_back = self.quantity or 0
        return self.give_back(sum(points for points, _ in self.taken))

    def give_back_units(self, units: int) -> Expected:
        """Of N units worth P points the first u are worth P x u / N, rounded down; the last makes up the rest."""
        assert self.quantity is not None
        before = self._worth(self.units_back)
        self.units_back += units
        return self.give_back(self._worth(self.units_back) - before)

    def _worth(self, units: int) -> int:
        if units == self.quantity:
            return self.points
        assert self.quantity is not None
        return self.points * units // self.quantity // self.step * self.step


@dataclass(slots=True)
class Shop:
    """Gathers the lines to load, and strands of records: of one strand each comes after the one before it."""

    now: datetime
    first_org: int
    lines: list[Data] = field(default_factory=list)
    strands: dict[int, list[list[Event]]] = field(default_factory=dict)  # by act
    _numbers: dict[str, count[int]] = field(default_factory=dict)

    @property
    def main(self) -> int:
        """The shop itself."""
        return self.first_org

    @property
    def market(self) -> int:
        """Its marketplace, whose redemptions may come after their returns."""
        return self.first_org + 1

    @property
    def closed(self) -> int:
        """A shop that allows no reversals."""
        return self.first_org + 2

    @property
    def unknown(self) -> int:
        """An org that nobody configured."""
        return self.first_org + ORGS - 1

    def number(self, of: str, first: int = 1) -> int:
        return next(self._numbers.setdefault(of, count(first)))

    def play(self, act: int, *events: Event) -> None:
        """Events of a later act come after all of an earlier one is taken."""
        self.strands.setdefault(act, []).append(list(events))

    def org(self, org_id: int, **rest: Any) -> None:
        self.lines.append({"kind": "org", "orgId": org_id, **rest})

    def program(self, org_id: int, program_id: str, **rest: Any) -> None:
        self.lines.append({"kind": "program", "orgId": org_id, "programId": program_id, **rest})

    def reward(self, org_id: int, reward_id: str, **rest: Any) -> None:
        self.lines.append({"kind": "reward", "orgId": org_id, "rewardId": reward_id, **rest})

    def customer(self, org_id: int, **rest: Any) -> Customer:
        number = self.number("customer")
        first, last = FIRST_NAMES[number % len(FIRST_NAMES)], LAST_NAMES[number % len(LAST_NAMES)]
        # Numbers that Ofcom keeps free for films and examples.
        phone, email = f"+44 7700 90{number:04d}", f"{first}.{last}.{number}@example.com"
        customer = Customer(
            org_id,
            41_000 + number,
            (
                {"type": "PHONE", "value": phone},
                {"type": "EMAIL", "value": email.lower()},
                {"type": "EXTERNAL_ID", "value": f"crm/{number:05d}"},
                {"type": "PHONE", "value": phone.replace(" ", "").removeprefix("+")},
                {"type": "EMAIL", "value": email},
                {"type": "ID", "value": str(41_000 + number)},
            ),
        )
        line = {"kind": "customer", "orgId": org_id, "customerId": customer.customer_id}
        self.lines.append({**line, "identifiers": list(customer.identifiers[:3]), **rest})
        return customer

    def lot(self, customer: Customer, program_id: str, points: int, *, spent: int = 0, days: int | None = None) -> str:
        """A lot that expires in so many days (never: None), with what was spent of it."""
        lot_id = f"L-{self.number('lot', 9001)}"
        line = {
            "kind": "lot",
            "orgId": customer.org_id,
            "customerId": customer.customer_id,
            "lotId": lot_id,
            "programId": program_id,
            "points": spell(points),
            "remaining": spell(points - spent),
            "issuedAt": self.at(-300),
        }
        self.lines.append(line if days is None else {**line, "expiresAt": self.at(days)})
        return lot_id

    def redeem(
        self,
        customer: Customer,
        program_id: str,
        parts: Sequence[tuple[int, int | None]],
        *,
        days_ago: int = 12,
        lots_kept: bool = True,
        step: int = 10,
        **rest: Any,
    ) -> Burned:
        """A redemption that consumed of each lot so many points; each lot expires in so many days, or never (None)."""
        number = self.number("redemption", 5001)
        points = sum(part for part, _ in parts)
        kind = "UNIT_BASED" if "quantity" in rest else ("RAW", "AMOUNT_BASED")[number % 2]
        line = {
            "kind": "redemption",
            "orgId": customer.org_id,
            "customerId": customer.customer_id,
            "redemptionId": f"R-{number}",
            "orderId": f"SO-{number + 13_000}",
            "programId": program_id,
            "type": kind,
            "points": spell(points),
            "redeemedAt": self.at(-days_ago),
            **rest,
        }
        if lots_kept:
            spare = (number % 4) * 5 * UNIT
            line["lots"] = [
                {"lotId": self.lot(customer, program_id, part + spare, spent=part, days=days), "points": spell(part)}
                for part, days in parts
            ]
        self.lines.append(line)
        keeps = lots_kept and program_id not in EXTENDING
        taken = [(part, keeps and days is not None and days < 0) for part, days in parts]
        return Burned(
            customer, program_id, line["redemptionId"], line["orderId"], points, taken, rest.get("quantity"), step
        )

    def coming(
        self, customer: Customer, parts: Sequence[tuple[int, int | None]], *, named: bool, issued: bool = True
    ) -> tuple[Burned, Data]:
        """A redemption that is not booked yet, with the data of its `points.redeemed`; the lots are there if `issued`.

        Where the lots are not named, `parts` must come in the order in which the service consumes them.
        """
        number = self.number("redemption", 5001)
        points = sum(part for part, _ in parts)
        data: Data = {
            "orgId": customer.org_id,
            "customerId": customer.customer_id,
            "redemptionId": f"R-{number}",
            "orderId": f"SO-{number + 13_000}",
            "points": spell(points),
            "type": "RAW",
        }
        lots = [self.lot(customer, MARKET, part, days=days) for part, days in parts] if issued else []
        if named:
            data["lots"] = [
                {"lotId": lot_id, "points": spell(part)} for lot_id, (part, _) in zip(lots, parts, strict=True)
            ]
        taken = [(part, False) for part, _ in parts]
        return Burned(customer, MARKET, data["redemptionId"], data["orderId"], points, taken), data

    def request(self, burned: Burned, **given: Any) -> Data:
        """The data of a return, with or without what is optional; `None` leaves a field out."""
        number = self.number("return")
        data: Data = {
            "orgId": burned.customer.org_id,
            "orderId": burned.order_id,
            "returnId": f"RMA-{number}",
            "redemptionId": burned.redemption_id,
            "reason": REASONS[number % len(REASONS)],
        }
        if number % 3 == 0:
            data["identifier"] = burned.customer.identifiers[number // 3 % 6]
        if number % 5 == 0:
            data["idempotencyKey"] = f"RMA-{number}/1"
        if number % 4 == 0:
            data["returnedAt"] = self.at(-1)
        if number % 7 == 0:
            data["programId"] = burned.program_id
        if number % 11 == 0:
            data["returnId"] = None  # the key is then the CloudEvent's or the record's
        return {name: value for name, value in (data | given).items() if value is not None}

    def ask(self, burned: Burned, expected: Expected, *, waits: bool = False, **given: Any) -> Event:
        """A return of a redemption."""
        return self.event(RETURNS, burned.customer.customer_id, self.request(burned, **given), expected, waits=waits)

    def event(self, topic: str, key: object, data: Data, expected: Expected, *, waits: bool = False) -> Event:
        """A record of any of the forms, one after the other."""
        number = self.number("event")
        value, headers = enveloped(FORMS[number % len(FORMS)], topic, number, data)
        return Event(topic, str(key).encode(), value, headers, expected, waits)

    def at(self, days: float) -> str:
        """The moment in so many days."""
        return (self.now + timedelta(days=days)).isoformat()


def spell(points: int) -> str:
    """As the sender spells it: two decimals, or three where it takes them."""
    return f"{points // UNIT}.{points % UNIT:03d}"[: None if points % 10 else -1]


def enveloped(form: str, topic: str, number: int, data: Data) -> tuple[bytes, Headers]:
    """The data in one of FORMS; the last two are the bare and the structured one in a rarer spelling."""
    if form == "snake_case":
        return json.dumps({_snake(name): value for name, value in data.items()}).encode(), ()
    if form == "bare":
        return json.dumps(data).encode(), (("content-type", b"application/json"),)
    attributes = {"specversion": "1.0", "id": f"evt-{number:06d}", "source": "/shop/orders", "type": topic}
    if form == "binary":
        trace = (("traceparent", f"00-{number:032x}-{number:016x}-01".encode()),) if number % 2 else ()
        head = tuple((f"ce_{name}", value.encode()) for name, value in attributes.items())
        return json.dumps(data).encode(), (("content-type", b"application/json"), *head, *trace)
    if form == "base64":
        body = {**attributes, "data_base64": base64.b64encode(json.dumps(data).encode()).decode()}
        return json.dumps(body).encode(), ()  # told by its specversion
    assert form == "structured", form
    return json.dumps({**attributes, "data": data}).encode(), (("content-type", b"application/cloudevents+json"),)


def _snake(name: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)
