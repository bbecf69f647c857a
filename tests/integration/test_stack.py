"""What every other test stands on: a clean database and topics of its own, and records that come back as sent."""

from __future__ import annotations

import asyncpg
import pytest

from tests.stack import Record, Sending, Stack, create_topics, eventually, produce, read_all


async def test_a_test_has_a_migrated_database_to_itself(pool: asyncpg.Pool, template_database: str) -> None:
    name = await pool.fetchval("select current_database()")
    assert name != template_database
    assert await pool.fetchval("select count(*) from schema_migration") > 0


async def test_records_come_back_as_they_were_sent(stack: Stack, topic_prefix: str) -> None:
    await create_topics(stack.bootstrap_servers, {topic_prefix: 2}, {"max.message.bytes": "2000000"})
    sent = [
        Sending(
            b"a" * 1_500_000,
            key=b"k",
            headers=[("h", b"1"), ("h", b"2")],
            partition=1,
            timestamp=1_700_000_000_000,
        ),
        Sending(None, key=b"k", partition=1, timestamp=1_700_000_000_001),
        Sending(b"c", partition=0, timestamp=1_700_000_000_002),
    ]
    places = await produce(stack.bootstrap_servers, topic_prefix, sent, max_request_size=2_000_000)
    assert places == [(1, 0), (1, 1), (0, 0)]
    found = await read_all(stack.bootstrap_servers, topic_prefix)
    assert found == [
        Record(0, 0, 1_700_000_000_002, None, b"c", ()),
        Record(1, 0, 1_700_000_000_000, b"k", b"a" * 1_500_000, (("h", b"1"), ("h", b"2"))),
        Record(1, 1, 1_700_000_000_001, b"k", None, ()),
    ]
    assert found[1].header("h") == "2"


async def test_eventually_returns_the_first_true_value_and_gives_up_in_time() -> None:
    values = iter([0, 0, 3])
    assert await eventually(lambda: next(values), 5) == 3
    with pytest.raises(AssertionError, match=r"still 0 after 0\.05 s"):
        await eventually(lambda: 0, 0.05)
