"""`python -m tests.bench.size`: bytes per event, for the plan in the README; no load, a minute on any machine.

Returns of customers drawn at random go through the service's own pipeline in batches of 500, Kafka left out. Counted:
the write-ahead log with full_page_writes off (the changes alone) and on, right after a checkpoint (the dearest moment:
each page's first change logs the whole page); rows and index entries as they lie; what Kafka is given.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import asyncpg

from service.embedded_postgres import EmbeddedPostgres
from service.load import load
from service.migrate import migrate
from service.records import Record
from service.session import session
from service.settings import Settings
from service.store import connect
from tests.bench.arena import lines, returns
from tests.integration.desk import FIRST_TIMESTAMP_MS, RETURNS, Partition, Process

EVENTS = 12_000  # one for each customer
BATCH = 500
WARM_UP = 2_000  # not counted

KEPT = ("customer", "identifier", "lot", "redemption", "reversal", "journal", "refusal")


async def logged(owner: asyncpg.Connection, process: Process, partition: Partition, until: int) -> list[float]:
    """Take the partition's records up to an offset; bytes, entries and page images of the log per event."""
    state = "select pg_current_wal_insert_lsn() - '0/0', wal_records, wal_fpi from pg_stat_wal"
    lane = await process.lane(partition)
    first = lane.next_offset
    await owner.execute("checkpoint")
    before = await owner.fetchrow(state)
    while lane.next_offset < until:
        await process.publish(partition, await process.take(partition, BATCH))
    await asyncio.sleep(1.5)  # sessions hand in their figures when they are idle for a second
    await process.pool.fetchval("select 1")
    after = await owner.fetchrow(state)
    assert before is not None
    assert after is not None
    return [round(float(one - other) / (until - first), 1) for one, other in zip(after, before, strict=True)]


async def stored(owner: asyncpg.Connection, table: str) -> list[int]:
    """Bytes of a row and of its index entries, free space of the pages included."""
    row = await owner.fetchrow(
        f"select pg_table_size('{table}') / count(*), pg_indexes_size('{table}') / count(*) from {table}"
    )
    return list(row or ())


async def sizes(url: str, folder: Path) -> dict[str, Any]:
    """All figures."""
    await migrate(url)
    settings = Settings(database_url=url)
    path = folder / "shop.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(EVENTS)))
    async with session(settings) as connection:
        assert (await load(connection, path)).booked
    stream = list(returns(EVENTS))
    random.Random(7).shuffle(stream)
    partition = Partition(RETURNS)
    for offset, (key, value) in enumerate(stream):
        partition.records.append(Record(RETURNS, 0, offset, FIRST_TIMESTAMP_MS + offset, key, value, ()))
    owner = await asyncpg.connect(url)
    process = Process(await connect(settings), settings)
    await owner.execute("vacuum analyze")
    await owner.execute("alter system set full_page_writes = off")
    await owner.execute("select pg_reload_conf()")
    await logged(owner, process, partition, WARM_UP)
    changes, entries, _ = await logged(owner, process, partition, (EVENTS + WARM_UP) // 2)
    await owner.execute("alter system set full_page_writes = on")
    await owner.execute("select pg_reload_conf()")
    most, _, images = await logged(owner, process, partition, EVENTS)
    given = [
        len(one.key or b"") + len(one.value or b"") + sum(len(name) + len(value or b"") for name, value in one.headers)
        for one in process.published
    ]
    report = {
        "wal_bytes_of_changes": changes,
        "wal_entries": entries,
        "wal_bytes_after_a_checkpoint": most,
        "page_images_after_a_checkpoint": images,
        "kafka_bytes_in": round(sum(len(key) + len(value) for key, value in stream) / EVENTS),
        "kafka_bytes_out": round(sum(given) / len(given)),
        "bytes_of_a_row_and_of_its_index_entries": {table: await stored(owner, table) for table in KEPT},
    }
    await owner.close()
    process.kill()
    return report


def main() -> None:
    """Print them."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o711)  # the user that runs Postgres for root must get through
        postgres = EmbeddedPostgres(place / "postgres", None)
        postgres.start()
        try:
            print(json.dumps(asyncio.run(sizes(postgres.url, place)), indent=2))
        finally:
            postgres.stop()
            postgres.remove()


if __name__ == "__main__":
    main()
