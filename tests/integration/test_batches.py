"""A batch equals the same records one by one; and both are what the model makes of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from tests import streams
from tests.compare import Names, normalise_all
from tests.integration.desk import COMPLETED, FAILED, FIRST_TIMESTAMP_MS, SECOND, Data, Desk, Published, desk_on
from tests.integration.imports import import_stream
from tests.model import Model
from tests.reading import Number
from tests.stack import Stack, create_database, drop_database

KINDS = ("order.returned", "customer.updated", "points.issued", "points.redeemed")


@dataclass
class Step:
    """Records of one topic that come one after another; then the clock moves on. `due`: then the deadlines are looked at."""

    kind: str
    records: list[streams.Record]
    seconds: int
    due: bool


@dataclass
class Run:
    """What a stream came to: all that was published, and the tables at its end, with names for random ids."""

    published: list[Published]
    tables: dict[str, list[Any]]
    names: Names = field(default_factory=Names)


def steps_of(stream: streams.Stream, random: Random) -> list[Step]:
    """The stream in windows; in each the topics come one after the other, as partitions are read."""
    steps = []
    left = list(stream.records)
    while left:
        size = random.randint(15, 60)
        window, left = left[:size], left[size:]
        kinds = [kind for kind in KINDS if any(record.kind == kind for record in window)]
        random.shuffle(kinds)
        for kind in kinds:
            records = [record for record in window if record.kind == kind]
            last = kind == kinds[-1]
            steps.append(Step(kind, records, random.choice([1, 7, 40]) if last else 1, last))
    return steps


async def serve(desk: Desk, stream: streams.Stream, steps: list[Step], size: Random | int) -> Run:
    """Takes the steps in batches of a size, or of random ones."""
    desk.set_clock(stream.clock)
    now = stream.clock
    process = desk.process
    for step in steps:
        partition = desk.partition(step.kind)
        for record in step.records:
            key, value, headers = streams.encode(record)
            partition.append(value, key=key, headers=headers)
        lane = await process.lane(partition)
        while lane.next_offset < len(partition.records):
            most = size if isinstance(size, int) else size.choice([1, 2, 5, 100])
            await process.publish(partition, await process.take(partition, most))
        now += step.seconds * SECOND
        desk.set_clock(now)
        if step.due:
            await look_at_deadlines(desk)
    desk.set_clock(now + 1000 * SECOND)
    await look_at_deadlines(desk)
    assert await desk.waiting() == []
    for partition in desk.partitions.values():
        await process.clear(partition)
    run = Run(list(process.published), {})
    run.tables = await tables(desk, run)
    return run


async def look_at_deadlines(desk: Desk) -> None:
    for kind in KINDS:
        partition = desk.partition(kind)
        await desk.process.publish(partition, await desk.process.pipeline.take_due(await desk.process.lane(partition)))


def outcomes(run: Run) -> list[Data]:
    return [one.document for one in run.published if one.topic in (COMPLETED, FAILED)]


def dead_letters(run: Run) -> list[tuple[str, str]]:
    """(place, reason) of each, sorted: where several lanes' deadlines pass at once, the lanes have no order."""
    return sorted(
        (f"{one.header('dlq.topic')}/{one.header('dlq.partition')}/{one.header('dlq.offset')}", reason)
        for one in run.published
        if (reason := one.header("dlq.reason"))
    )


async def tables(desk: Desk, run: Run) -> dict[str, list[Any]]:
    """All that the database holds, less what is random or a matter of the lane's owner; journal entries in no order."""
    names = run.names
    normalise_all(outcomes(run), names)
    entry_names = {id_: name for id_, name in names.names.items() if name.startswith("journal:")}
    found: dict[str, list[Any]] = {}
    for table in ("program", "customer", "identifier", "reward", "waiting"):
        found[table] = await desk.rows(f"select * from {table} order by 1, 2, 3")
    for table in ("lot", "redemption"):
        rows = [dict(row) for row in await desk.pool.fetch(f"select * from {table}")]
        found[table] = in_order(table, [names.row(row) for row in rows])
    rows = [dict(row) for row in await desk.pool.fetch("select * from journal")]
    for row in rows:
        row["entry_id"] = entry_names.get(str(row["entry_id"]), row["kind"])
        row["subjects"] = [names.name(subject) for subject in row["subjects"]]
    found["journal"] = sorted(rows, key=repr)
    for table in ("reversal", "refusal"):
        rows = [dict(row) for row in await desk.pool.fetch(f"select * from {table} order by lane_id, record_offset")]
        for row in rows:
            row["outcome"] = names.rewritten(json.loads(row["outcome"]))
            for name in ("reversal_id", "journal_entry_id"):
                if name in row:
                    row[name] = names.name(str(row[name]))
        found[table] = rows
    found["lane"] = await desk.rows(
        """select topic, next_offset, high_offset, last_offset, last_timestamp_ms, taken, completed, failed, booked,
        unchanged, repeated, dead from lane order by 1"""
    )
    found["lane_settled"] = await desk.rows("select * from lane_settled order by 1, 2")
    return found


def model_run(model: Model, stream: streams.Stream, steps: list[Step]) -> list[Data]:
    """The outcomes that the model decides for the same steps at the same moments."""
    decided = []
    now = stream.clock
    offsets: Counter[str] = Counter()
    for step in steps:
        for record in step.records:
            offset = offsets[record.kind]
            offsets[record.kind] += 1
            place = f"{record.kind}/0/{offset}@{FIRST_TIMESTAMP_MS + offset}"
            data = json.loads(streams.to_json(record.data), parse_float=Number, parse_int=Number)
            decided += model.take(record.kind, data, place=place, now=now, ce=record.ce)
        now += step.seconds * SECOND
        if step.due:
            decided += model.tick(now)
    return [*decided, *model.tick(now + 1000 * SECOND)]


def differing(ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Per table what only one of two runs holds, so that a failure can be read."""
    found = {}
    for table, rows in ours.items():
        left = [row for row in rows if row not in theirs[table]]
        right = [row for row in theirs[table] if row not in rows]
        if rows != theirs[table]:
            found[table] = (left, right)
    return found


@pytest.mark.parametrize("seed", range(8))
async def test_a_stream_comes_to_what_the_model_says(desk: Desk, seed: int) -> None:
    stream = streams.sample(seed, customers=25, records=300)
    random = Random(seed)
    steps = steps_of(stream, random)
    model = await import_stream(desk, stream)
    run = await serve(desk, stream, steps, random)
    decided = normalise_all(model_run(model, stream, steps))
    published = normalise_all(outcomes(run))
    for ours, theirs in zip(published, decided, strict=False):
        assert ours == theirs
    assert len(published) == len(decided)
    assert dead_letters(run) == sorted((place.split("@")[0], reason) for place, reason in model.dead)
    assert await desk.broken() == {}
    ours = {table: run.tables[table] for table in ("lot", "redemption")}
    theirs = {"lot": model.lots(), "redemption": model.redemptions()}
    assert differing(ours, {table: in_order(table, rows) for table, rows in theirs.items()}) == {}
    customers = [(*row.values(),) for row in model.customers()]
    assert [(*row[:5], row[6]) for row in run.tables["customer"]] == customers
    identifiers = [(row["org_id"], row["type"], lookup, row["value"], row["customer_id"])
                   for (_, _, lookup), row in sorted(model.identifier_rows.items())]  # fmt: skip
    assert run.tables["identifier"] == identifiers
    assert run.tables["reward"] == [(*row.values(),) for row in model.rewards()]
    await check_counts(desk, model, stream)


def in_order(table: str, rows: list[Data]) -> list[Data]:
    return sorted(rows, key=lambda row: (row["org_id"], row[f"{table}_id"]))


async def check_counts(desk: Desk, model: Model, stream: streams.Stream) -> None:
    """An update that changes nothing may count as booked."""
    counted: Counter[str] = Counter()
    for kind in KINDS:
        counted.update(await desk.counts(kind))
    counted["booked"] += counted.pop("unchanged", 0)
    expected = Counter(model.counts) + Counter(taken=len(stream.records))
    expected["booked"] += expected.pop("unchanged", 0)
    assert counted == expected


@pytest.mark.parametrize("seed", range(100, 105))
async def test_batches_equal_the_same_records_one_by_one(stack: Stack, template_database: str, seed: int) -> None:
    stream = streams.sample(seed, customers=12, records=150)
    steps = steps_of(stream, Random(seed))
    runs = []
    for size in (1, 1000, Random(seed)):
        url = await create_database(stack.database_url, template_database)
        try:
            async with desk_on(url) as desk:
                await import_stream(desk, stream)
                runs.append(await serve(desk, stream, steps, size))
        finally:
            await drop_database(url)
    singly, *batched = runs
    for run in batched:
        assert normalise_all(outcomes(run)) == normalise_all(outcomes(singly))
        assert [(one.topic, one.key, one.headers) for one in run.published] == [
            (one.topic, one.key, one.headers) for one in singly.published
        ]
        assert differing(run.tables, singly.tables) == {}
