"""Whatever arrives is read, decided and written down: over the pure core for as many records as the dose says (DOSE=long: a
million), over a real Postgres for a sample."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.batch import Batch, Settled
from service.events import decode
from service.headers import read, sent, written
from service.ledger import Customer, Ledger, Lot, Org, Program, Redemption
from service.outbox import Outgoing, outgoing
from service.outcomes import Completed, Refused
from service.published import DEAD_LETTER_HEADERS
from service.records import LARGEST_ID, Kind, Record, Return, Unreadable
from service.settings import Settings
from tests import stack as servers
from tests.hostile import strategies as hostile
from tests.hostile.strategies import CUSTOMER, ORG
from tests.hostile.test_corpus import assert_ours, without_given
from tests.integration.desk import Desk, desk_on
from tests.stack import Stack

LONG = os.environ.get("DOSE") == "long"
TIMES = 100 if LONG else 1
MAX_BYTES = 2_000
NOW = datetime(2026, 11, 20, 1, 30, 2, 123456, tzinfo=UTC)
SETTINGS = Settings()
# The records that these generate are small on purpose; what is slow or large is in the corpus.
PATIENT = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
]


pytestmark = pytest.mark.timeout(0 if LONG else 180)


def dose(cases: int) -> settings:
    """So many cases in the short dose, a hundred times as many in the long one."""
    return settings(max_examples=cases * TIMES, deadline=None, suppress_health_check=PATIENT, database=None)


def shop() -> Ledger:
    """A customer with lots, a redemption of points and one of units; everything may be reversed."""
    program = Program(ORG, "main", is_default=True)
    lot = Lot(ORG, "L-1", CUSTOMER, "main", 200_000, 40_000, None, NOW - timedelta(days=90))
    common = {"customer_id": CUSTOMER, "program_id": "main", "redeemed_at": NOW - timedelta(days=9), "reward_id": None}
    points = Redemption(
        ORG, "R-1", order_id="SO-1", type="RAW", points=100_000, reversed=0, quantity=None, reversed_quantity=None,
        lots=(("L-1", 100_000),), **common,  # type: ignore[arg-type]
    )  # fmt: skip
    units = Redemption(
        ORG, "R-u", order_id="SO-2", type="UNIT_BASED", points=50_000, reversed=0, quantity=3, reversed_quantity=0,
        lots=(("L-1", 50_000),), **common,  # type: ignore[arg-type]
    )  # fmt: skip
    return Ledger(
        now=NOW,
        orgs={ORG: Org(ORG, programs={"main": program})},
        customers={(ORG, CUSTOMER): Customer(ORG, CUSTOMER)},
        identifiers={(ORG, "PHONE", "6591234567"): CUSTOMER},
        lots={(ORG, "L-1"): lot},
        redemptions={(ORG, "R-1"): points, (ORG, "R-u"): units},
        orders={(ORG, "SO-1"): ["R-1"], (ORG, "SO-2"): ["R-u"]},
        balances={(ORG, CUSTOMER, "main"): 40_000},
    )


@dose(2_000)
@given(hostile.any_bytes)
def test_any_bytes_are_read_and_decided(record: Record) -> None:
    check(record)


@dose(4_500)
@given(hostile.any_json)
def test_any_json_is_read_and_decided(record: Record) -> None:
    check(record)


@dose(3_500)
@given(hostile.any_event)
def test_any_event_is_read_and_decided(record: Record) -> None:
    check(record)


def check(record: Record) -> None:
    """One record through the pure part of the service, twice: the second time it is a duplicate, if it is anything."""
    message = decode(Kind(record.topic), record, MAX_BYTES)
    numbers = count(1)
    batch = Batch(shop(), 1, 300, lambda: str(UUID(int=next(numbers))))
    batch.take(record, message)
    again = replace(record, offset=record.offset + 1)
    batch.take(again, decode(Kind(record.topic), again, MAX_BYTES))
    assert batch.faults == []
    places = [one.record.place for one in batch.settled] + list(batch.parked)
    assert sorted(places) == sorted([record.place, again.place])
    for settled in batch.settled:
        assert settled.also is None
        for one in outgoing([settled], SETTINGS):
            check_sent(settled, one)
    if isinstance(message, Unreadable):
        return
    assert 1 <= message.org_id <= LARGEST_ID
    if isinstance(message, Return):
        check_return(message)


def check_return(request: Return) -> None:
    """What Postgres is given of it fits: no NUL, no half of a surrogate pair, nothing too long."""
    named = request.identifier
    for text in (request.key, request.order_id, request.return_id, request.redemption_id, request.program_id):
        assert text is None or (1 <= len(text) <= 255 and "\0" not in text and text.encode())
    assert "\0" not in request.reason
    assert named is None or "\0" not in named.value + named.lookup
    assert request.points is None or 0 <= request.points < 2**63


def check_sent(settled: Settled, out: Outgoing) -> None:
    """A dead letter has the bytes untouched, an outcome is whole; both are in the service's own words."""
    record = settled.record
    headers = sent(out.headers)
    assert read(written(out.headers)) == headers
    if isinstance(settled.result, Unreadable):
        kept = out.payload if settled.result.reason != "too_large" else record.value
        assert (out.key, kept) == (record.key, record.value)
        own = [header for header in headers if header[0] not in DEAD_LETTER_HEADERS]
        assert own == [header for header in record.headers if header[0] not in DEAD_LETTER_HEADERS]
        assert_ours(settled.result.message)
        return
    assert isinstance(settled.result, Completed | Refused)
    assert out.payload is not None
    body = json.loads(out.payload)
    assert body["orgId"] == settled.result.request.org_id
    for error in body.get("errors", ()):
        assert_ours(without_given(error["message"], body))
    for name, value in headers:
        assert value is not None
        assert name == "ce_subject" or all(0x20 <= byte < 0x7F for byte in value), (name, value)


# Through the pipeline


@pytest.fixture(scope="module")
def databases(stack: Stack, template_database: str) -> Iterator[list[str]]:
    """Databases to be dropped at the end."""
    made: list[str] = []
    yield made
    for url in made:
        servers.run(servers.drop_database(url))


@dose(12)
@given(st.lists(hostile.any_record, min_size=15, max_size=40))
def test_a_batch_of_anything_is_written_down(
    stack: Stack, template_database: str, databases: list[str], records: list[Record]
) -> None:
    """By one transaction for each topic, on a real Postgres; the desk audits it at the end."""

    async def batch() -> None:
        url = await servers.create_database(stack.database_url, template_database)
        databases.append(url)
        async with desk_on(url) as desk:
            await furnish(desk)
            for kind in Kind:
                await take(desk, kind, [record for record in records if record.topic == kind])

    servers.run(batch())
    servers.run(servers.drop_database(databases.pop()))


async def furnish(desk: Desk) -> None:
    """The same shop."""
    await desk.customer(CUSTOMER, ("PHONE", "6591234567"))
    await desk.lot("L-1", 200, 40)
    await desk.redemption("R-1", 100, ("L-1", 100), order_id="SO-1")
    await desk.redemption("R-u", 50, ("L-1", 50), order_id="SO-2", type="UNIT_BASED", quantity=3)


async def take(desk: Desk, kind: Kind, records: list[Record]) -> None:
    partition = desk.partition(kind)
    for record in records:
        partition.append(record.value, key=record.key, headers=record.headers)  # type: ignore[arg-type]
    if not records:
        return
    taken = await desk.process.take(partition)
    assert [each.faults for each in taken if each.faults] == []
    assert len(taken) == 1, "some record was to blame, and the batch was halved"
    published = await desk.process.publish(partition, taken)
    untouched = {(record.key, record.value) for record in partition.records}
    for one in published:
        if one.topic.endswith(".dlq"):
            assert (one.key, one.value) in untouched
    await desk.process.clear(partition)
