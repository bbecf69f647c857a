"""Random streams: orgs, programs and customers as load lines, and records over all four input topics.

A seed names a stream for good. Left out on purpose is what two good services may do differently: an order
that hangs on ids drawn at random (points consumed from lots that reversals made), and what the contract leaves
open.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from tests.model import lifo
from tests.reading import Number, show_points, snake

Data = dict[str, Any]

# The decision moment that the times of every stream are made around. Freeze the service's clock here.
CLOCK = datetime(2026, 11, 20, 1, 30, 2, 123456, tzinfo=UTC)
SOURCE = "/shop"
FORMS = ("structured", "binary", "bare")
TYPES = ("RAW", "AMOUNT_BASED", "UNIT_BASED")


@dataclass(frozen=True)
class Record:
    """One input record; `event_id` is the CloudEvent's `id`, without meaning where the form is bare."""

    kind: str
    key: str
    data: Data
    form: str
    event_id: str

    @property
    def ce(self) -> Data | None:
        """What `Model.take` wants to know of the envelope."""
        return None if self.form == "bare" else {"source": SOURCE, "id": self.event_id}


@dataclass(frozen=True)
class Stream:
    """`rogue_programs`: rows of table `program` that replace loaded ones, as only other writers may."""

    load_lines: list[Data]
    records: list[Record]
    rogue_programs: list[Data]
    clock: datetime = CLOCK


def to_json(value: Any) -> str:
    """JSON; a `Number` as it is spelled."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {to_json(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def encode(record: Record) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers as they go to Kafka."""
    data = to_json(record.data)
    attributes = {"specversion": "1.0", "id": record.event_id, "source": SOURCE, "type": record.kind}
    headers: list[tuple[str, bytes]] = []
    if record.form == "structured":
        headers = [("content-type", b"application/cloudevents+json; charset=utf-8")]
        data = to_json({**attributes, "datacontenttype": "application/json", "data": Raw(data)})
    if record.form == "binary":
        headers = [("content-type", b"application/json")]
        headers += [("ce_" + name, text.encode()) for name, text in attributes.items()]
    return record.key.encode(), data.encode(), headers


class Raw(Number):
    """JSON that is written already."""

    __slots__ = ()


def sample(seed: int, *, customers: int = 30, records: int = 300) -> Stream:
    """A stream of its own for each seed."""
    return Maker(Random(seed), customers, records).stream()


PLAIN, RULED, CLOSED, PATIENT, HEADLESS, NOWHERE = 1001, 1002, 1003, 1004, 1005, 1999


def programs_of(random: Random) -> dict[int, list[Data]]:
    """The orgs and their programs: each rule has one where it bites."""
    days, count, seconds = random.randint(5, 40), random.randint(1, 3), random.choice([60, 900])
    return {
        PLAIN: [{"programId": "main"}],
        RULED: [
            {
                "programId": "main",
                "default": True,
                "decimals": 2,
                "reversalWindowDays": days,
                "minimumPoints": random.choice(["5", "2.5", 10]),
            },
            {"programId": "few", "maxReversals": {"count": count, "days": random.randint(1, 30)}},
            {"programId": "gold", "default": False, "allowPartial": False, "decimals": 0},
            {"programId": "grace", "decimals": 1, "expiredLots": {"policy": "extend", "graceDays": days}},
            {"programId": "asleep", "live": False},
            {"programId": "barred", "reversalAllowed": False},
            {"programId": "rogue-extend", "decimals": 2},
            {"programId": "rogue-limit", "decimals": 2},
            {"programId": "small", "minimumPoints": "40", "decimals": 1},
        ],
        CLOSED: [{"programId": "main", "decimals": 2}],
        PATIENT: [
            {"programId": "main", "default": True, "decimals": 1, "parkUnknownSeconds": seconds},
            {"programId": "hasty", "default": False, "decimals": 3, "expiredLots": {"policy": "keep"}},
        ],
        HEADLESS: [{"programId": "east", "default": False}, {"programId": "west", "default": False}],
    }


def rogue_programs() -> list[Data]:
    sane: Data = {
        "org_id": RULED,
        "is_default": False,
        "live": True,
        "decimals": 2,
        "reversal_allowed": True,
        "allow_partial": True,
        "reversal_window_days": None,
        "minimum_points": 0,
        "max_reversals_count": None,
        "max_reversals_days": None,
        "expired_lots_policy": "keep",
        "grace_days": None,
        "park_unknown_seconds": 0,
    }
    return [
        {**sane, "program_id": "rogue-extend", "expired_lots_policy": "extend"},
        {**sane, "program_id": "rogue-limit", "max_reversals_count": 3},
    ]


def written(moment: datetime, random: Random) -> str:
    """A time in one of the spellings of RFC 3339."""
    hours = random.choice([0, 0, 8, -3])
    text = (moment + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
    return text + fraction + (f"{'-' if hours < 0 else '+'}{abs(hours):02d}:00" if hours else "Z")


@dataclass
class Purse:
    """What the maker knows of a customer in one program. `plain`: no reversal makes new lots here."""

    org_id: int
    customer_id: int
    program: Data
    lots: list[str] = field(default_factory=list)
    plain: bool = True

    @property
    def step(self) -> int:
        return (1000, 100, 10, 1)[self.program.get("decimals", 3)]


@dataclass
class Known:
    """A redemption that the maker made: its data, and where its points are."""

    purse: Purse
    data: Data
    points: int


class Maker:
    """Makes one stream; keeps only what it needs to aim at something that exists."""

    def __init__(self, random: Random, customers: int, records: int) -> None:
        self.random = random
        self.wanted = records
        self.programs = programs_of(random)
        self.lines: list[Data] = []
        self.records: list[Record] = []
        self.later: list[tuple[int, Record]] = []
        self.purses: list[Purse] = []
        self.known: list[Known] = []
        self.returns: list[Record] = []
        self.issues: list[Record] = []
        self.identifiers: dict[tuple[int, int], list[Data]] = {}
        self.rewards = ["coffee", "mug", "bag", "trip"]
        self.numbers = 0
        for org_id, programs in self.programs.items():
            self.make_org(org_id, programs)
        for index in range(customers):
            self.make_customer(index)

    def stream(self) -> Stream:
        while len(self.records) < self.wanted:
            due = [entry for entry in self.later if entry[0] <= len(self.records)]
            if due:
                self.later.remove(due[0])
                self.emit(due[0][1])
            else:
                self.make_record()
        return Stream(self.lines, self.records[: self.wanted], rogue_programs())

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def number(self, prefix: str) -> str:
        self.numbers += 1
        return f"{prefix}{self.numbers}"

    def moment(self, first: float, last: float) -> datetime:
        """A moment between so many days from the clock; to the second, so that two may be one."""
        seconds = self.random.randint(int(first * 86400), int(last * 86400))
        return CLOCK.replace(microsecond=0) + timedelta(seconds=seconds)

    def expiry(self) -> str | None:
        if self.chance(0.2):
            return None
        day = self.random.choice([-40, -10, -1, 1, 15, 60, 300])
        return written(CLOCK if self.chance(0.03) else self.moment(day, day), self.random)

    def make_org(self, org_id: int, programs: list[Data]) -> None:
        self.lines.append({"kind": "org", "orgId": org_id})
        if org_id == CLOSED:
            self.lines[-1]["reversalEnabled"] = False
        self.lines += [{"kind": "program", "orgId": org_id, **program} for program in programs]
        stock = [(None, 3, "ACTIVE"), (8, 8, "OUT_OF_STOCK"), (6, 4, "ACTIVE"), (9, 1, "INACTIVE")]
        for reward_id, (total, count, status) in zip(self.rewards, stock, strict=True):
            line: Data = {"kind": "reward", "orgId": org_id, "rewardId": reward_id, "status": status}
            line |= {"redeemedCount": count} if total is None else {"maxTotal": total, "redeemedCount": count}
            self.lines.append(line)

    def make_customer(self, index: int) -> None:
        org_id = self.random.choice([PLAIN] * 2 + [RULED] * 4 + [CLOSED] + [PATIENT] * 2 + [HEADLESS])
        customer_id = 40 + index
        digits = f"659{index:07d}"
        identifiers = [
            {"type": "PHONE", "value": f"+{digits[:2]} {digits[2:6]} {digits[6:]}"},
            {"type": "EMAIL", "value": f"Someone.{index}@Example.com"},
            {"type": "EXTERNAL_ID", "value": f"crm/{index}"},
        ]
        identifiers = self.random.sample(identifiers, self.random.randint(1, 3))
        self.identifiers[org_id, customer_id] = [*identifiers, {"type": "ID", "value": str(customer_id)}]
        line: Data = {"kind": "customer", "orgId": org_id, "customerId": customer_id}
        line["identifiers"] = identifiers
        if customer_id % 2:
            line["updatedAt"] = written(self.moment(-60, -50), self.random)
        fate = self.random.random()
        if fate < 0.05:
            line["status"] = "inactive"
        elif fate < 0.1:
            line["status"] = "fraud"
        elif fate < 0.2:
            line["lockedUntil"] = written(self.moment(1, 5), self.random)
        elif fate < 0.3:
            line["lockedUntil"] = written(CLOCK if self.chance(0.5) else self.moment(-5, -1), self.random)
        self.lines.append(line)
        rare = ("asleep", "barred", "rogue-extend", "rogue-limit")
        programs = [entry for entry in self.programs[org_id] if entry["programId"] not in rare or self.chance(0.2)]
        for program in self.random.sample(programs, min(len(programs), self.random.choice([1, 2, 4]))):
            self.make_purse(Purse(org_id, customer_id, program))

    def make_purse(self, purse: Purse) -> None:
        """Lots and redemptions as they may stand in a ledger that is some months old."""
        self.purses.append(purse)
        purse.plain = "expiredLots" not in purse.program or purse.program["expiredLots"]["policy"] == "keep"
        held = {self.number("L-"): self.amount(purse, 300) for _ in range(self.random.randint(1, 5))}
        outside = dict.fromkeys(held, 0)
        redemptions = [self.make_import(purse, list(held), outside) for _ in range(self.random.randint(1, 4))]
        for lot_id, remaining in held.items():
            remaining = 0 if self.chance(0.2) and outside[lot_id] else remaining
            spent = self.amount(purse, 50) if self.chance(0.3) else 0
            line = {
                **self.about(purse),
                "kind": "lot",
                "lotId": lot_id,
                "points": show_points(remaining + outside[lot_id] + spent),
                "issuedAt": written(self.moment(-400, -100), self.random),
            }
            expiry = self.expiry()
            if expiry is not None:
                line["expiresAt"] = expiry
            if remaining + outside[lot_id] + spent != remaining or self.chance(0.5):
                line["remaining"] = show_points(remaining)
            self.lines.append(line)
            purse.lots.append(lot_id)
        self.lines += redemptions

    def make_import(self, purse: Purse, lot_ids: list[str], outside: dict[str, int]) -> Data:
        """A redemption line; `outside` gains what each lot still misses on its account."""
        line = {"kind": "redemption", **self.redemption(purse)}
        line["redeemedAt"] = written(self.moment(-45, 0), self.random)
        lots = []
        if self.chance(0.8):
            chosen = self.random.sample(lot_ids, self.random.randint(1, min(4, len(lot_ids))))
            lots = [(lot_id, self.amount(purse, 90)) for lot_id in chosen]
            line["lots"] = [{"lotId": lot_id, "points": show_points(part)} for lot_id, part in lots]
        else:
            purse.plain = False
        points = sum(part for _, part in lots) or self.amount(purse, 200)
        line["points"] = show_points(points)
        given_back = 0
        if self.chance(0.3) and line["type"] == "UNIT_BASED":
            units = self.random.randint(0, line["quantity"] - 1)
            worth = points * units // line["quantity"] // purse.step * purse.step
            given_back = max(0, min(worth + self.random.choice([0, 0, purse.step]), points - purse.step))
            line |= {"reversedQuantity": units, "reversed": show_points(given_back)}
        elif self.chance(0.3) and line["type"] != "UNIT_BASED":
            steps = points // purse.step
            given_back = (steps if self.chance(0.2) else self.random.randint(0, steps)) * purse.step
            line["reversed"] = show_points(given_back)
        if lots:
            taken = {"lot_ids": [lot_id for lot_id, _ in lots], "lot_points": [part for _, part in lots]}
            for lot_id, part in lifo({"reversed": given_back, **taken}, points - given_back):
                outside[lot_id] += part
        self.known.append(Known(purse, line, points))
        return line

    def about(self, purse: Purse) -> Data:
        """Org, customer and (where it is not the default) program, as a feed names them."""
        program = purse.program
        default = program.get("default", len(self.programs[purse.org_id]) == 1)
        names = {"orgId": purse.org_id, "customerId": purse.customer_id}
        return names if default and self.chance(0.5) else {**names, "programId": program["programId"]}

    def redemption(self, purse: Purse) -> Data:
        """A redemption without its points; in one of five on the order of the one before."""
        prefix = self.random.choice(["R-", "R/", ""])
        data = {**self.about(purse), "redemptionId": prefix + self.number("5")}
        data["type"] = self.random.choice(TYPES)
        if self.chance(0.8):
            data["orderId"] = self.number("SO-")
            if self.known and self.chance(0.2) and self.known[-1].purse.org_id == purse.org_id:
                data["orderId"] = self.known[-1].data.get("orderId", data["orderId"])
        if data["type"] == "UNIT_BASED":
            data["quantity"] = self.random.randint(1, 7)
            if self.chance(0.8):
                data["rewardId"] = self.random.choice([*self.rewards, "unheard-of"])
        return data

    def amount(self, purse: Purse, most: int) -> int:
        """Thousandths, of the program's decimals; whole points more often than not, at times next to nothing."""
        if self.chance(0.07):
            return self.random.randint(1, 3) * purse.step
        step = 1000 if self.chance(0.6) else purse.step
        return self.random.randint(1, most * 1000 // step) * step

    def emit(self, record: Record) -> None:
        self.records.append(record)

    def record(self, kind: str, key: object, data: Data) -> Record:
        return Record(kind, str(key), data, self.random.choice(FORMS), self.number("e"))

    def make_record(self) -> None:
        makers = {
            self.make_return: 52,
            self.make_repeat: 12,
            self.make_early_return: 5,
            self.make_issue: 9,
            self.make_redeem: 12,
            self.make_update: 7,
            self.make_unreadable: 3,
        }
        chosen = self.random.choices(list(makers), list(makers.values()))[0]
        chosen()

    def spelled(self, thousandths: int) -> Any:
        """Points, as a string or a JSON number, with or without idle zeros."""
        text = show_points(thousandths)
        longer = text + "0" if "." in text else text + ".0"
        spellings = [text, text, longer, Number(text)]
        return self.random.choice([*spellings, Number(longer)] if len(longer) < 15 else spellings)

    def make_return(self) -> None:
        known = self.random.choice(self.known)
        data = self.ask(known)
        self.bend(known, data)
        self.send_return(known.purse.customer_id, data)

    def send_return(self, key: object, data: Data) -> None:
        if not isinstance(data.get("orgId"), int) or isinstance(data.get("orgId"), bool):
            return
        record = self.record("order.returned", key, data)
        self.returns.append(record)
        self.emit(self.varied(record) if self.chance(0.3) else record)

    def ask(self, known: Known) -> Data:
        """A good return of a redemption, whole or in part."""
        data: Data = {"orgId": known.purse.org_id, "redemptionId": known.data["redemptionId"]}
        order_id = known.data.get("orderId")
        if order_id is not None and self.chance(0.5):
            data["orderId"] = order_id
            if self.chance(0.5):
                del data["redemptionId"]
        naming = self.random.random()
        if naming < 0.6:
            data["idempotencyKey"] = self.number("key/")
        elif naming < 0.8:
            data["returnId"] = self.number("RMA 7/")
        if self.chance(0.3):
            data.setdefault("returnId", self.number("RMA-"))
        if self.chance(0.5):
            data["identifier"] = self.random.choice(
                self.identifiers.get((known.purse.org_id, known.purse.customer_id))
                or [{"type": "ID", "value": str(known.purse.customer_id)}]
            )
        if self.chance(0.3):
            data["reason"] = self.random.choice(["size does not fit", "reason: „Ärger“ 😀", "x" * 500])
        if self.chance(0.2):
            data["programId"] = known.purse.program["programId"]
        if self.chance(0.4):
            moment = self.moment(1, 9) if self.chance(0.2) else self.moment(-50, 0)
            data["returnedAt"] = written(moment, self.random)
        if self.chance(0.65):
            self.ask_part(known, data)
        return data

    def ask_part(self, known: Known, data: Data) -> None:
        if known.data["type"] == "UNIT_BASED":
            data["quantity"] = self.random.choice([1, 1, 2, 3])
            if data["quantity"] > known.data["quantity"]:
                data["quantity"] = known.data["quantity"] * 1000
            return
        share = self.random.choice([0.1, 0.25, 0.5, 0.5, 1, 1.2])
        step = known.purse.step
        data["pointsToBeReversed"] = self.spelled(max(1, int(known.points * share) // step) * step)

    def bend(self, known: Known, data: Data) -> None:
        """In one of four, breaks one rule on purpose."""
        if not self.chance(0.25):
            return
        breaks: list[Data] = [
            {"reason": "", "returnId": "a\nb"},
            {"returnedAt": "2026-11-20 09:30"},
            {"identifier": {"type": "FAX", "value": "12"}},
            {"identifier": "+6591234567"},
            {"pointsToBeReversed": "0", "quantity": None},
            {"pointsToBeReversed": "-5", "quantity": None},
            {"pointsToBeReversed": Number("1e3"), "quantity": None},
            {"pointsToBeReversed": "1234567890123456", "quantity": None},
            {"pointsToBeReversed": "5", "quantity": 1},
            {"quantity": 0, "pointsToBeReversed": None},
            {"redemptionId": None, "orderId": None, "returnId": None},
            {"pointsToBeReversed": "1.2345", "quantity": None},
            {"pointsToBeReversed": Number("1.00050"), "quantity": None},
            {"pointsToBeReversed": "7.125", "quantity": None},
            {"pointsToBeReversed": "1", "quantity": None},
            {"quantity": 1, "pointsToBeReversed": None},
            {"orgId": NOWHERE},
            {"programId": "unheard-of"},
            {"programId": self.random.choice(self.programs[known.purse.org_id])["programId"]},
            {"redemptionId": self.number("R-none-")},
            {"redemptionId": None, "orderId": self.number("SO-none-")},
            {"redemptionId": known.data["redemptionId"], "orderId": "SO-other"},
            {"identifier": {"type": "PHONE", "value": "+1 (555) 000-0000"}},
            {"identifier": self.random.choice(self.random.choice(list(self.identifiers.values())))},
        ]
        for name, value in self.random.choice(breaks).items():
            if value is None:
                data.pop(name, None)
            else:
                data[name] = value

    def varied(self, record: Record) -> Record:
        """The same request in another spelling."""
        data = dict(record.data)
        points = data.get("pointsToBeReversed")
        if isinstance(points, str) and re.fullmatch("[1-9][0-9]{0,10}", points):
            spellings = [points, points + ".0", Number(points), Number(points + ".00")]
            data["pointsToBeReversed"] = self.random.choice(spellings)
        identifier = data.get("identifier")
        if isinstance(identifier, dict) and identifier["type"] == "PHONE":
            value = "".join(character for character in identifier["value"] if character.isdigit())
            data["identifier"] = {"type": "PHONE", "value": f"({value[:3]}) {value[3:5]}.{value[5:]}"}
        if isinstance(identifier, dict) and identifier["type"] == "EMAIL":
            data["identifier"] = {"type": "EMAIL", "value": f" {identifier['value'].upper()} "}
        if isinstance(identifier, dict) and identifier["type"] == "ID":
            data["identifier"] = {"type": "ID", "value": int(identifier["value"])}
        redemption_id = data.get("redemptionId", "")
        if redemption_id.isdigit():
            data["redemptionId"] = int(redemption_id)
        if self.chance(0.4):
            data = {snake(name): value for name, value in data.items()}
        if self.chance(0.2):
            data |= {"order_identity": {"x": [1, None, True]}, "programme": None}
        if self.chance(0.1):
            data["quantity"] = data.get("quantity")
        return replace(record, data=data)

    def make_repeat(self) -> None:
        """A return again: the same request, another one under its key, or a record of the same event."""
        if not self.returns:
            return
        record = self.random.choice(self.returns[-40:])
        again = replace(record, form=self.random.choice(FORMS), event_id=self.number("e"))
        change = self.random.random()
        if change < 0.2 and record.form != "bare":
            again = replace(again, form=record.form, event_id=record.event_id)
        elif change < 0.4:
            other = dict(record.data)
            other["programId"] = "main"
            if "pointsToBeReversed" in other:
                other["pointsToBeReversed"] = "1"
            if "quantity" in other:
                other["quantity"] = 2
            again = replace(again, data=other)
        elif change < 0.5:
            again = replace(again, data={**record.data, "reason": "second thoughts"})
        again = self.varied(again) if self.chance(0.6) else again
        if self.chance(0.3):
            self.later.append((len(self.records) + self.random.randint(1, 40), again))
        else:
            self.emit(again)

    def make_early_return(self) -> None:
        """A return before its redemption, which follows in most cases."""
        purse = self.random.choice(self.purses)
        if self.chance(0.7):
            purse = self.random.choice([purse for purse in self.purses if purse.org_id == PATIENT] or [purse])
        redeem, known = self.redeem(purse)
        data = self.ask(known)
        if self.chance(0.2):
            data["programId"] = self.random.choice(self.programs[purse.org_id])["programId"]
        self.send_return(purse.customer_id, data)
        if self.chance(0.2):
            self.send_return(purse.customer_id, {**data, "reason": "asked twice"})
        if self.chance(0.85):
            self.later.append((len(self.records) + self.random.randint(1, 30), redeem))
            self.known.append(known)

    def issue(self, purse: Purse, points: int, lot_id: str) -> Record:
        data = {**self.about(purse), "lotId": lot_id, "points": self.spelled(points)}
        if (expiry := self.expiry()) is not None:
            data["expiresAt"] = expiry
        if self.chance(0.7):
            data["issuedAt"] = written(self.moment(-5, 0), self.random)
        record = self.record("points.issued", purse.customer_id, data)
        self.issues.append(record)
        return record

    def make_issue(self) -> None:
        purse = self.random.choice(self.purses)
        if self.chance(0.15):
            purse = replace(purse, customer_id=self.random.randint(900, 920), lots=[])
            self.purses.append(purse)
        fate = self.random.random()
        if fate < 0.15 and self.issues:
            record = self.random.choice(self.issues)
            data = dict(record.data)
            if self.chance(0.5):
                data["points"] = "77777"
            elif "issuedAt" in data:
                del data["issuedAt"]
            self.emit(replace(record, data=data, event_id=self.number("e")))
        elif fate < 0.2:
            record = self.issue(purse, 1000, self.number("L-"))
            self.emit(replace(record, data={**record.data, "programId": "unheard-of"}))
        elif fate < 0.25:
            record = self.issue(purse, 1000, self.number("L-"))
            self.emit(replace(record, data={**record.data, "orgId": NOWHERE}))
        else:
            lot_id = self.number(self.random.choice(["L-", "l-", "Ł-"]))
            purse.lots.append(lot_id)
            self.emit(self.issue(purse, self.amount(purse, 400), lot_id))

    def redeem(self, purse: Purse) -> tuple[Record, Known]:
        data = self.redemption(purse)
        if self.chance(0.7):
            data["redeemedAt"] = written(self.moment(-45, 0), self.random)
        points = self.amount(purse, self.random.choice([20, 80, 600]))
        if not purse.plain or (purse.lots and self.chance(0.4)):
            parts = {lot_id: self.amount(purse, 30) for lot_id in self.named_lots(purse)}
            points = sum(parts.values())
            data["lots"] = [{"lotId": lot_id, "points": self.spelled(part)} for lot_id, part in parts.items()]
        data["points"] = self.spelled(points)
        return self.record("points.redeemed", purse.customer_id, data), Known(purse, data, points)

    def named_lots(self, purse: Purse) -> list[str]:
        """Some lots of the purse; in one of seven also one that is not there yet, but most likely comes."""
        chosen = self.random.sample(purse.lots, min(len(purse.lots), self.random.randint(1, 3)))
        if self.chance(0.15) or not chosen:
            coming = self.number("L-late-")
            chosen.append(coming)
            if self.chance(0.8):
                record = self.issue(purse, self.amount(purse, 30) + 30_000, coming)
                self.later.append((len(self.records) + self.random.randint(1, 20), record))
        return chosen

    def make_redeem(self) -> None:
        purse = self.random.choice(self.purses)
        record, known = self.redeem(purse)
        fate = self.random.random()
        if fate < 0.1:
            again = dict(record.data)
            again.pop("redeemedAt", None)
            if self.chance(0.5):
                again["type"], again["quantity"] = "UNIT_BASED", 9
            self.later.append((len(self.records) + self.random.randint(1, 9), replace(record, data=again)))
        elif fate < 0.15 and "lots" in record.data:
            record = replace(record, data={**record.data, "points": "999999"})
        elif fate < 0.2:
            record = replace(record, data={**record.data, "programId": "unheard-of"})
        self.known.append(known)
        self.emit(record)

    def make_update(self) -> None:
        org_id, customer_id = self.random.choice(list(self.identifiers))
        data: Data = {"orgId": org_id, "customerId": customer_id}
        if customer_id % 2:
            data["updatedAt"] = written(self.moment(-70, -1), self.random)
        fate = self.random.random()
        if fate < 0.35:
            data["status"] = self.random.choice(["active", "active", "active", "inactive", "fraud"])
        elif fate < 0.6:
            data["lockedUntil"] = None if self.chance(0.7) else written(self.moment(-3, 2), self.random)
        else:
            mine = [entry for entry in self.identifiers[org_id, customer_id] if entry["type"] != "ID"]
            mine = self.random.sample(mine, self.random.randint(0, len(mine)))
            others = [who for who in self.identifiers if who[0] == org_id and who[1] != customer_id]
            if others and self.chance(0.5):
                taken = self.random.choice(self.identifiers[self.random.choice(others)])
                mine += [taken] if taken["type"] != "ID" and taken not in mine else []
            if self.chance(0.5):
                mine.append({"type": "EXTERNAL_ID", "value": self.number("crm/new/")})
            data["identifiers"] = mine
            self.identifiers[org_id, customer_id] = [*mine, {"type": "ID", "value": str(customer_id)}]
        if self.chance(0.3):
            data = {snake(name): value for name, value in data.items()}
        self.emit(self.record("customer.updated", customer_id, data))

    def make_unreadable(self) -> None:
        """Records for the dead letters, of every topic; their bytes are good JSON all the same."""
        choices: list[tuple[str, Data]] = [
            ("order.returned", {"orderId": "SO-1"}),
            ("order.returned", {"orgId": 0, "orderId": "SO-1"}),
            ("order.returned", {"orgId": Number("1.5"), "orderId": "SO-1"}),
            ("customer.updated", {"orgId": PLAIN}),
            ("customer.updated", {"orgId": PLAIN, "customerId": 41, "status": "asleep"}),
            ("points.issued", {"orgId": PLAIN, "customerId": 41, "lotId": "L-bad", "points": "0"}),
            ("points.issued", {"orgId": PLAIN, "customerId": 41, "lotId": "L-bad", "points": "1.2345"}),
            ("points.issued", {"orgId": PLAIN, "customerId": -1, "lotId": "L-bad", "points": "1"}),
            ("points.redeemed", {"orgId": PLAIN, "customerId": 41, "redemptionId": "", "points": "1"}),
            ("points.redeemed", {"customerId": 41, "redemptionId": "R-bad", "points": "1"}),
        ]
        kind, data = self.random.choice(choices)
        self.emit(self.record(kind, "unreadable", data))
