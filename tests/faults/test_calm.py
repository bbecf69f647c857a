"""Where the stream fixes the order, the final database equals that of a run without faults, row by row.

A customer's returns lie on one partition, in their order; the feeds, which could overtake them, are taken in turn.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from service.failpoint import POINTS
from tests.faults.conftest import Doses, Trials
from tests.faults.engine import Trial
from tests.faults.servers import end_sessions, postgres_of, shut_down_at_once
from tests.faults.test_kills import STATIC, killed
from tests.process import Site, site
from tests.stack import Sending, Stack
from tests.traffic import verify

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(7200)]

Data = dict[str, Any]

RECORDS = 500  # of each part of the stream
TURNS = ("points.issued", "points.redeemed", "customer.updated", "order.returned")
OF_FEEDS = [point for point in POINTS if point not in ("published", "revoked")]  # a feed has no outcome
OF_RETURNS = [*OF_FEEDS, "published"]

# What is not decided by the stream: ids that are drawn (also of lots that carry on an expired one), the moments of
# decisions, and what is made of a record's timestamp or its topic's name.
CHANCE = {
    "customer": (), "identifier": (), "reward": (), "waiting": (), "outbox": (),
    "lot": ("issued_at",),
    "redemption": ("redeemed_at",),
    "journal": ("entry_id", "created_at"),
    "reversal": ("reversal_id", "journal_entry_id", "created_at", "outcome_id", "lane_id"),
    "refusal": ("failed_at", "outcome_id", "lane_id"),
    "lane": ("lane_id", "epoch", "owner", "last_timestamp_ms", "updated_at"),
    "lane_settled": ("lane_id", "by_lane_id"),
}  # fmt: skip
OF_OUTCOMES = ("reversalId", "journalEntryId", "createdAt", "failedAt")
LEDGER = {"org", "program", "schema_migration"}  # no record changes these


async def contents(place: Site) -> dict[str, list[str]]:
    """Every table that records change, without what is left to chance, each row as text, in one order."""
    async with place.database() as connection:
        names = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
        tables = {row[0] for row in names}
        assert tables - LEDGER == CHANCE.keys(), "a table is new: is it to be compared?"
        lanes = {row[0]: row[1:] for row in await connection.fetch("select lane_id, topic, partition from lane")}
        found = {}
        for table, chance in CHANCE.items():
            rows = [dict(row) for row in await connection.fetch(f"select * from {table}")]
            for row in rows:
                if row.get("restored_from") is not None:
                    row["lot_id"] = row["expires_at"] = None
                if "lane_id" in row:
                    row["topic"], row["partition"] = lanes[row["lane_id"]]
                if "topic" in row:
                    row["topic"] = row["topic"].removeprefix(place.prefix)
                if "outcome" in row:
                    outcome = json.loads(row["outcome"])
                    row["outcome"] = {name: value for name, value in outcome.items() if name not in OF_OUTCOMES}
            found[table] = sorted(
                repr({name: value for name, value in row.items() if name not in chance}) for row in rows
            )
    return found


@pytest.fixture
def calm(stack: Stack, template_database: str) -> Iterator[Site]:
    with site(stack, template_database, settings={"batch_records": "40"}) as own:
        yield own


async def test_the_final_database_is_that_of_a_run_without_faults(
    stack: Stack, calm: Site, trial: Trials, dose: Doses
) -> None:
    run = trial("beside a calm run", dose("beside a calm run, parts"))
    stream = [run.traffic.next(RECORDS) for _ in range(run.figures.dose)]
    turns = [(kind, part[kind]) for part in stream for kind in TURNS]
    await calm.load(run.traffic.lines())
    service = calm.start()
    for kind, records in turns:
        await calm.produce(kind, records)
        await calm.drained()
    await service.stop()
    await verify(calm)
    async with run:
        ways = itertools.cycle(["kill", "kill", "Postgres", "kill", "sessions"])
        for way, (kind, records) in zip(ways, turns, strict=False):
            await hit(run, stack, way, kind, records)
            run.fault_ended()
            heir = run.site.start(**STATIC)
            await run.site.drained(60)
            heir.kill()
        await run.finish()
    expected, found = await contents(calm), await contents(run.site)
    assert found.keys() == expected.keys()
    assert all(expected[table] for table in ("customer", "lot", "redemption", "journal", "reversal", "refusal", "lane"))
    for table, rows in expected.items():
        assert found[table] == rows, f"table {table} is another than without faults"


async def hit(run: Trial, stack: Stack, way: str, kind: str, records: list[Sending]) -> None:
    """A process takes records and is hit in the middle of them; it is gone at the end."""
    returns = kind == "order.returned"
    if way == "kill":
        point = run.random.choice(OF_RETURNS if returns else OF_FEEDS)
        service = run.site.start(**STATIC, test_failpoint=f"{point}:{run.random.randint(1, 4 if returns else 1)}")
        await run.site.produce(kind, records)
        await killed(service)
        return
    service = run.site.start(**STATIC)
    await service.ready()
    await run.site.produce(kind, records)
    await run.moves(run.random.randint(1, len(records) // 2), timeout_seconds=5)
    if way == "Postgres":
        postgres = postgres_of(stack)
        await shut_down_at_once(postgres)
        await asyncio.to_thread(postgres.start)
    else:
        await end_sessions(run.site)
    await run.moves(1, timeout_seconds=5)  # it goes on by itself
    service.kill()
