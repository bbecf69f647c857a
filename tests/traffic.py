"""Returns and feeds for real processes to work on, and what must hold of all that came of them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

import orjson

from service.records import Record as Taken
from tests.process import Site
from tests.stack import Headers, Record, Sending

Data = dict[str, Any]

ORG = 100458
PHONE, EMAIL = "+65 9876543{:04d}", "Someone.{}@shop.example"
OUTPUT_HEADERS = {
    "content-type", "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_subject", "ce_orgid", "ce_errorcode",
    "traceparent",
}  # fmt: skip
DEAD_LETTER_HEADERS = {
    "dlq.reason", "dlq.message", "dlq.topic", "dlq.partition", "dlq.offset", "dlq.timestamp", "dlq.group",
}  # fmt: skip


def shop(customers: int = 4, redemptions: int = 4, points: int = 200) -> list[Data]:
    """Load lines: one org with one program; customers 1…, each with lots A (expired), B and C and redemptions
    `R-{customer}-1` … of their order `SO-{customer}-1` … that took from all three."""
    lines: list[Data] = [{"kind": "org", "orgId": ORG}, {"kind": "program", "orgId": ORG, "programId": "main"}]
    for customer in range(1, customers + 1):
        identifiers = [
            {"type": "PHONE", "value": PHONE.format(customer)},
            {"type": "EMAIL", "value": EMAIL.format(customer)},
        ]
        lines.append({"kind": "customer", "orgId": ORG, "customerId": customer, "identifiers": identifiers})
        parts = {"A": points // 2, "B": points * 3 // 10, "C": points - points // 2 - points * 3 // 10}
        for name, part in parts.items():
            expiry = {"expiresAt": "2020-01-01T00:00:00Z"} if name == "A" else {}
            lot = {
                "orgId": ORG,
                "customerId": customer,
                "lotId": f"{name}-{customer}",
                "points": str(part * redemptions),
            }
            lines.append({"kind": "lot", **lot, "remaining": "0", "issuedAt": "2019-01-01T00:00:00Z", **expiry})
        for number in range(1, redemptions + 1):
            lots = [{"lotId": f"{name}-{customer}", "points": str(part)} for name, part in parts.items()]
            redemption = {"orgId": ORG, "customerId": customer, "redemptionId": f"R-{customer}-{number}", "lots": lots}
            redemption |= {"orderId": f"SO-{customer}-{number}", "points": str(points), "type": "AMOUNT_BASED"}
            lines.append({"kind": "redemption", **redemption, "redeemedAt": "2026-01-01T00:00:00Z"})
    return lines


def bare(data: Data, key: object = "", headers: Headers = (), partition: int | None = None) -> Sending:
    """A record of bare JSON."""
    return Sending(json.dumps(data).encode(), str(key).encode() or None, headers, partition)


def binary(data: Data, key: object, event_id: str, *more: tuple[str, bytes], kind: str = "order.returned") -> Sending:
    """A CloudEvent in binary form."""
    attributes = {"specversion": "1.0", "id": event_id, "source": "/shop", "type": kind}
    headers = [
        ("content-type", b"application/json"),
        *((f"ce_{name}", text.encode()) for name, text in attributes.items()),
    ]
    return Sending(json.dumps(data).encode(), str(key).encode(), [*headers, *more])


def structured(
    data: Data, key: object, event_id: str, *more: tuple[str, bytes], kind: str = "order.returned"
) -> Sending:
    """A CloudEvent in structured form."""
    event = {"specversion": "1.0", "id": event_id, "source": "/shop", "type": kind, "data": data}
    headers = [("content-type", b"application/cloudevents+json; charset=utf-8"), *more]
    return Sending(json.dumps(event).encode(), str(key).encode(), headers)


@dataclass
class Traffic:
    """A shop's stream: returns of which so many are repeats, feeds between them, and some that nobody can read."""

    random: Random
    customers: int = 40
    redemptions: int = 10
    duplicates: float = 0.3
    unreadable: float = 0.02
    sent: list[Sending] = field(default_factory=list)
    unspent: list[tuple[int, str]] = field(default_factory=list)  # customers and lots for redemptions to come
    numbers: int = 0

    def lines(self) -> list[Data]:
        return shop(self.customers, self.redemptions)

    def next(self, count: int) -> dict[str, list[Sending]]:
        """The next records, by the default name of their topic."""
        found: dict[str, list[Sending]] = {}
        for _ in range(count):
            kind, record = self._one()
            found.setdefault(kind, []).append(record)
        return found

    def _one(self) -> tuple[str, Sending]:
        self.numbers += 1
        chance = self.random.random()
        if self.sent and chance < self.duplicates:
            return "order.returned", self.random.choice(self.sent[-300:])
        chance = self.random.random()
        customer = self.random.randint(1, self.customers)
        names = {"orgId": ORG, "customerId": customer}
        if chance < 0.05 or (chance < 0.08 and not self.unspent):
            self.unspent.append((customer, f"L-{self.numbers}"))
            return "points.issued", bare({**names, "lotId": f"L-{self.numbers}", "points": "50"}, customer)
        if chance < 0.08:  # it names its lot: which one it takes does not hang on the order of two topics
            customer, lot = self.unspent.pop(self.random.randrange(len(self.unspent)))
            redemption = {"orgId": ORG, "customerId": customer, "redemptionId": f"R-new-{self.numbers}", "points": "1"}
            return "points.redeemed", bare({**redemption, "lots": [{"lotId": lot, "points": "1"}]}, customer)
        if chance < 0.10:
            identifiers = [{"type": "PHONE", "value": PHONE.format(customer)}]
            return "customer.updated", bare({**names, "identifiers": identifiers}, customer)
        if chance < 0.10 + self.unreadable:
            return "order.returned", Sending(b"\xff not JSON", str(customer).encode(), [("h", b"1"), ("h", b"2")])
        record = self._return(customer)
        self.sent.append(record)
        return "order.returned", record

    def _return(self, customer: int) -> Sending:
        """One in ten of a redemption that nobody knows; the amounts are such that redemptions run out at some time,
        and one of them (4.015) is less in binary floats."""
        number = self.random.randint(1, self.redemptions)
        data: Data = {"orgId": ORG, "redemptionId": f"R-{customer}-{number}", "returnId": f"RMA-{self.numbers}"}
        data["pointsToBeReversed"] = str(self.random.choice([1, "4.015", "12.5", 30]))
        if self.random.random() < 0.1:
            data["redemptionId"] = f"R-none-{self.numbers}"
        if self.random.random() < 0.3:
            data["identifier"] = {"type": "PHONE", "value": PHONE.format(customer)}
        form = self.random.choice([structured, binary])
        return form(data, customer, f"e-{self.numbers}") if self.random.random() < 0.7 else bare(data, customer)


async def send(site: Site, traffic: dict[str, list[Sending]]) -> None:
    """Produces to all topics at once."""
    await asyncio.gather(*(site.produce(kind, records) for kind, records in traffic.items()))


@dataclass
class Findings:
    """What was read back of a site. `repeats`: outcomes and dead letters that came again, byte for byte."""

    inputs: dict[str, list[Record]]
    outputs: dict[str, list[Record]]
    outcomes: dict[str, Record] = field(default_factory=dict)  # by ce_id
    letters: dict[str, Record] = field(default_factory=dict)  # dead letters by place
    repeats: int = 0

    def bodies(self) -> list[Data]:
        """The outcomes' JSON, each once."""
        return [orjson.loads(one.value or b"") for one in self.outcomes.values()]

    def by_code(self) -> Counter[str]:
        """How many outcomes of each kind, and dead letters of each reason."""
        codes = Counter(one.header("ce_errorcode") or "completed" for one in self.outcomes.values())
        return codes + Counter(f"dead {one.header('dlq.reason')}" for one in self.letters.values())


def taken(topic: str, record: Record) -> Taken:
    """The record as the service sees it: it knows its place, and the `ce_id` that its outcome must have."""
    return Taken(topic, record.partition, record.offset, record.timestamp, record.key, record.value, record.headers)


async def read_back(site: Site) -> Findings:
    """Everything that lies on the site's topics; repeats are counted, and must be byte-identical."""
    inputs, outputs = list(site.topics.inputs()), site.outputs
    read = await asyncio.gather(*(site.read(topic) for topic in [*inputs, *outputs]))
    findings = Findings(dict(zip(inputs, read, strict=False)), dict(zip(outputs, read[len(inputs) :], strict=True)))
    topics = site.topics
    for topic, records in findings.outputs.items():
        for record in records:
            if topic in (topics.reversal_completed, topics.reversal_failed):
                name, known = record.header("ce_id") or "", findings.outcomes
            else:
                name, known = _origin(record), findings.letters
            first = known.setdefault(name, record)
            if first is not record:
                findings.repeats += 1
                same = (first.key, first.value, first.headers, first.partition)
                assert same == (record.key, record.value, record.headers, record.partition), (
                    f"{topic}: {name} came again and is another"
                )
    return findings


def _origin(letter: Record) -> str:
    """The place of the record that a dead letter came from."""
    moment = datetime.fromisoformat(letter.header("dlq.timestamp") or "")
    coordinates = "/".join(str(letter.header(f"dlq.{name}")) for name in ("topic", "partition", "offset"))
    return f"{coordinates}@{round(moment.timestamp() * 1000)}"


async def verify(site: Site, *, waiting: int = 0) -> Findings:
    """What must hold once the stream is drained, whatever died meanwhile (the contract's guarantees).

    `waiting`: so many records may still wait.
    """
    findings = await read_back(site)
    await _check_each_input(site, findings, waiting)
    _check_order(site, findings)
    await _check_sequences(site, findings)
    await _check_ledger(site, findings)
    await site.audit()
    return findings


async def _check_each_input(site: Site, findings: Findings, waiting: int) -> None:
    """Each return has exactly one outcome, or lies in the dead letters with its bytes and headers untouched."""
    returned = site.topic("order_returned")
    letters = dict(findings.letters)
    expected: set[str] = set()
    without = 0
    for topic, records in findings.inputs.items():
        for record in records:
            origin = taken(topic, record)
            letter = letters.pop(origin.place, None)
            if letter is not None:
                _check_letter(record, letter, site.group)
            if topic != returned:
                continue
            name = str(origin.outcome_id)
            expected.add(name)
            has_outcome = name in findings.outcomes
            raised = letter is not None and letter.header("dlq.reason") == "decision_raised"
            assert not (has_outcome and letter is not None) or raised, f"{origin.place} has outcome and dead letter"
            without += not has_outcome and letter is None
    assert not letters, f"dead letters of no record: {list(letters)[:5]}"
    assert without == waiting, f"{without} returns have no outcome, {waiting} may wait"
    assert findings.outcomes.keys() <= expected, "outcomes of no record"
    async with site.database() as connection:
        in_all = await connection.fetchval("select sum(taken) from lane")
        lanes = await connection.fetch("select topic, partition, next_offset from lane")
        outbox = await connection.fetchval("select count(*) from outbox")
    assert in_all == sum(map(len, findings.inputs.values())), "records were taken twice or not at all"
    assert outbox == 0
    ends = await site.ends()
    assert all(ends[one["topic"], one["partition"]] == one["next_offset"] for one in lanes)


def _check_letter(record: Record, letter: Record, group: str) -> None:
    kept = letter.header("dlq.reason") not in ("too_large", "corrupt")
    assert (letter.key, letter.value) == (record.key, record.value if kept else None)
    own = [header for header in letter.headers if header[0] not in DEAD_LETTER_HEADERS]
    given = [header for header in record.headers if header[0] not in DEAD_LETTER_HEADERS]  # forged ones are replaced
    assert own == given
    added = [name for name, _ in letter.headers if name in DEAD_LETTER_HEADERS]
    assert sorted(added) == sorted(DEAD_LETTER_HEADERS)
    assert letter.header("dlq.group") == group


def _check_order(site: Site, findings: Findings) -> None:
    """Outcomes of one partition first appear in the order of their records (on each output partition)."""
    topic = site.topic("order_returned")
    places = {str(taken(topic, one).outcome_id): (one.partition, one.offset) for one in findings.inputs[topic]}
    last: dict[tuple[str, int, int], int] = {}
    for output in (site.topics.reversal_completed, site.topics.reversal_failed):
        seen = set()
        for record in findings.outputs[output]:
            name = record.header("ce_id") or ""
            assert {header for header, _ in record.headers} <= OUTPUT_HEADERS
            if name in seen:
                continue
            seen.add(name)
            partition, offset = places[name]
            lane = (output, record.partition, partition)
            assert offset > last.get(lane, -1), f"{output}: the outcome of {topic}/{partition}/{offset} came too late"
            last[lane] = offset


async def _check_sequences(site: Site, findings: Findings) -> None:
    """Each customer's outcomes count from 1 without gap or repeat, up to what the database holds."""
    numbers: dict[tuple[int, int], list[int]] = {}
    for body in findings.bodies():
        if body["customerId"] is not None:
            numbers.setdefault((body["orgId"], body["customerId"]), []).append(body["sequence"])
        else:
            assert body.get("sequence") is None
    async with site.database() as connection:
        rows = await connection.fetch("select org_id, customer_id, sequence from customer where sequence > 0")
    stored = {(row["org_id"], row["customer_id"]): row["sequence"] for row in rows}
    for customer, found in numbers.items():
        assert sorted(found) == list(range(1, stored[customer] + 1)), (customer, sorted(found))
    assert numbers.keys() == stored.keys()


async def _check_ledger(site: Site, findings: Findings) -> None:
    """What was published is what the ledger holds, text for text."""
    published = {}
    for name, record in findings.outcomes.items():
        body = orjson.loads(record.value or b"")
        if body.get("existing") is not None:
            body["existing"] = None
        published[name] = body
    async with site.database() as connection:
        rows = await connection.fetch(
            "select outcome_id, outcome from reversal union all select outcome_id, outcome from refusal"
        )
    assert {str(row["outcome_id"]): orjson.loads(row["outcome"]) for row in rows} == published
    keys = Counter((body["orgId"], body["idempotencyKey"]) for body in findings.bodies() if "errors" not in body)
    assert all(count == 1 for count in keys.values())


def headers_of(record: Record) -> dict[str, str]:
    """A record's headers as text; each of an outcome's stands once."""
    names = [name for name, _ in record.headers]
    assert len(names) == len(set(names)), names
    return {name: value.decode() for name, value in record.headers}


def outcomes_of(findings: Findings, topic: str, records: Sequence[tuple[int, int]]) -> list[Record | None]:
    """The outcomes of the records at those places (partition, offset), in that order."""
    known = {(one.partition, one.offset): str(taken(topic, one).outcome_id) for one in findings.inputs[topic]}
    return [findings.outcomes.get(known[one]) for one in records]


def bodies(records: Iterable[Record]) -> list[Data]:
    return [orjson.loads(record.value or b"") for record in records]
