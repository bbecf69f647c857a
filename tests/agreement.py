"""The simple model beside the service: each customer's records, one after the other in the order of their `sequence`.

A model of its own for each customer, since nothing that one of these tests does to a customer reaches another. A feed
record has no sequence: it stands where its decision moment (when its lot was issued, its redemption redeemed) puts it.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.compare import Names
from tests.model import Model
from tests.process import Site
from tests.reading import Number
from tests.stack import Record
from tests.traffic import Findings, taken

Data = dict[str, Any]

FEEDS = {"customer_updated": "customer.updated", "points_issued": "points.issued", "points_redeemed": "points.redeemed"}
FEW = 5  # feed records of one moment: of so many each combination is tried
ROWS = {"lot": "lot_id", "redemption": "redemption_id"}


@dataclass(frozen=True)
class Event:
    """One record that was decided; `outcome`: as published, None of a feed record."""

    kind: str
    data: Data
    ce: Data | None
    place: str
    moment: datetime
    outcome: Data | None

    @property
    def sequence(self) -> int:
        return int((self.outcome or {}).get("sequence") or 0)


async def differences(site: Site, findings: Findings) -> list[str]:
    """Where the service's outcomes, lots and redemptions are not what the model says of the same records."""
    async with site.database() as connection:
        rows = {table: [dict(row) for row in await connection.fetch(f"select * from {table}")] for table in ROWS}
    returns: dict[int | None, list[Event]] = {None: []}
    for event in _returns(site, findings):
        assert event.outcome is not None
        returns.setdefault(event.outcome["customerId"], []).append(event)
    feeds: dict[int, list[Event]] = {}
    for event in _feeds(site, findings, rows):
        feeds.setdefault(event.data["customerId"], []).append(event)
    customers = {row["customer_id"] for table in rows.values() for row in table} | returns.keys() | feeds.keys()
    found = []
    for customer in sorted(customers, key=lambda one: one or 0):
        theirs = {table: [one for one in rows[table] if one["customer_id"] == customer] for table in ROWS}
        found += _of_customer(customer, site.loaded, returns.get(customer, []), feeds.get(customer or 0, []), theirs)
    return found


@dataclass(frozen=True)
class Booked:
    """A feed record, and before which of the customer's returns it can have been booked: `first` to `last`."""

    event: Event
    first: int
    last: int


def booked_between(returns: list[Event], feeds: list[Event]) -> list[Booked]:
    """A feed record was booked at its moment. Of one that was in a transaction with returns the moment does not tell before
    which of them: its lane had its turn, or it waited for one that completed."""
    booked = []
    for feed in sorted(feeds, key=lambda one: (one.moment, one.kind)):
        first = next((at for at, one in enumerate(returns) if one.moment >= feed.moment), len(returns))
        last = next((at for at, one in enumerate(returns) if one.moment > feed.moment), len(returns))
        booked.append(Booked(feed, first, max(first, last)))
    return booked


def _choices(must: list[Booked], may: list[Booked]) -> Iterator[list[Booked]]:
    """What can have been booked next: as few as possible first, of many the earlier ones first."""
    sizes = range(len(may) + 1)
    some = (
        (itertools.combinations(may, size) for size in sizes) if len(may) <= FEW else ([may[:size]] for size in sizes)
    )
    for extra in itertools.chain.from_iterable(some):
        yield [*must, *extra]


def _of_customer(
    customer: int | None, lines: list[Data], returns: list[Event], feeds: list[Event], rows: dict[str, list[Data]]
) -> list[str]:
    """Returns in the order of their sequence; feed records in the first of the orders that their moments allow in which
    the model says the same."""
    model, names = Model(), Names()
    model.load([line for line in lines if line.get("customerId") in (None, customer)], datetime.now(UTC))
    decided = sorted(returns, key=lambda one: one.sequence)
    pending = booked_between(decided, feeds)
    found = []
    for at in range(len(decided) + 1):
        must = [one for one in pending if one.last <= at]
        may = [one for one in pending if one.first <= at < one.last]
        tried = []
        for chosen in _choices(must, may):
            ahead = (model, names) if not may else copy.deepcopy((model, names))
            events = [one.event for one in chosen] + decided[at : at + 1]
            tried.append(([one for event in events for one in _of_event(event, *ahead)], chosen, ahead))
            if not tried[-1][0]:
                break
        differing, chosen, (model, names) = min(tried, key=lambda one: len(one[0]))
        found += [f"{one}, customer {customer}" for one in differing]
        pending = [one for one in pending if one not in chosen]
    modelled = {"lot": model.lots(), "redemption": model.redemptions()}
    for table, theirs in rows.items():
        ours = {row[ROWS[table]]: row for row in map(names.row, theirs)}
        expected_rows = {row[ROWS[table]]: row for row in modelled[table]}
        found += [
            f"{table} {name}: {unlike([ours.get(name, {})], [expected_rows.get(name, {})])}"
            for name in sorted(ours.keys() | expected_rows.keys())
            if ours.get(name) != expected_rows.get(name)
        ]
    return found


def _of_event(event: Event, model: Model, names: Names) -> Iterator[str]:
    decided = model.take(event.kind, event.data, place=event.place, now=event.moment, ce=event.ce)
    expected = [names.rewritten(one) for one in decided]
    published = [names.outcome(event.outcome)] if event.outcome is not None else []
    if expected != published:
        yield f"{event.place}: {unlike(published, expected)}"


def unlike(ours: list[Data], theirs: list[Data]) -> str:
    """What only one of two has, and where they differ: ours, then the model's."""
    if len(ours) != len(theirs):
        return f"{ours}, the model says {theirs}"
    pairs = {
        name: (one.get(name), two.get(name))
        for one, two in zip(ours, theirs, strict=True)
        for name in one.keys() | two.keys()
        if one.get(name) != two.get(name)
    }
    return ", ".join(f"{name} {one}, the model says {two}" for name, (one, two) in sorted(pairs.items()))


def _returns(site: Site, findings: Findings) -> Iterable[Event]:
    topic = site.topic("order_returned")
    for record in findings.inputs[topic]:
        origin = taken(topic, record)
        published = findings.outcomes.get(str(origin.outcome_id))
        if published is None:
            continue
        outcome = json.loads(published.value or b"")
        data, ce = read(record)
        moment = datetime.fromisoformat(outcome.get("createdAt") or outcome["failedAt"])
        yield Event("order.returned", data, ce, origin.place, moment, outcome)


def _feeds(site: Site, findings: Findings, rows: dict[str, list[Data]]) -> Iterable[Event]:
    """Each feed record at the moment at which it took effect; updates of these tests change nothing: at the first."""
    booked = {("points.issued", row["lot_id"]): row["issued_at"] for row in rows["lot"]}
    booked |= {("points.redeemed", row["redemption_id"]): row["redeemed_at"] for row in rows["redemption"]}
    first = min(booked.values(), default=None)
    for setting, kind in FEEDS.items():
        topic = site.topic(setting)
        for record in findings.inputs[topic]:
            data, ce = read(record)
            name = data.get("lotId") or data.get("redemptionId")
            moment = first if kind == "customer.updated" else booked.get((kind, name))
            if moment is not None:
                yield Event(kind, data, ce, taken(topic, record).place, moment, None)


def read(record: Record) -> tuple[Data, Data | None]:
    """Data and envelope of a record that is good JSON."""
    data = json.loads(record.value or b"", parse_float=Number)
    if "specversion" in data:
        return data["data"], {"source": data["source"], "id": data["id"]}
    source, name = record.header("ce_source"), record.header("ce_id")
    return data, None if name is None else {"source": source, "id": name}
