"""One transaction for each batch of up to 500: reads by arrays, writes by `executemany`, an outbox row for each outcome.

`python -m tests.bench.peers.careful` with the settings of the service in the environment.
"""

from __future__ import annotations

import json
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer
from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker, KafkaMessage

from service.settings import Settings
from tests.bench.peers.naive import JOURNAL, REFUSAL, REVERSAL, journal, refusal, reversal
from tests.bench.peers.plain import Decided, Return, decide, outcome_id

settings = Settings()
broker = KafkaBroker(settings.kafka.bootstrap_servers)
app = FastStream(broker)
state: dict[str, Any] = {}

OUTBOX = """insert into outbox (lane_id, position, id, aggregatetype, aggregateid, type, topic, record_key, payload,
    headers, created_at) values ($1, $2, $3, 'customer', $4, $5, $6, $7, $8, $9, $10)"""


@app.on_startup
async def connect() -> None:
    """A connection and a producer that gathers."""
    state["pool"] = await asyncpg.create_pool(settings.database_url.get_secret_value(), min_size=2, max_size=4)
    state["producer"] = producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka.bootstrap_servers, enable_idempotence=True, acks="all",
        linger_ms=2, max_batch_size=256 * 1024,
    )  # fmt: skip
    await producer.start()


@app.on_shutdown
async def disconnect() -> None:
    """Nothing is left behind."""
    await state["producer"].stop()


@broker.subscriber(
    settings.topics.order_returned,
    group_id=settings.kafka.group_id,
    batch=True,
    max_records=500,
    auto_offset_reset="earliest",
    ack_policy=AckPolicy.ACK,
    fetch_max_wait_ms=50,
)
async def returned(requests: list[Return], message: KafkaMessage) -> None:
    """A batch of returns."""
    raw = message.raw_message
    assert isinstance(raw, tuple)
    ids = [outcome_id(one.topic, one.partition, one.offset) for one in raw]
    async with state["pool"].acquire() as connection:
        async with connection.transaction():
            decided = await reverse(connection, requests)
            await write(connection, decided, raw, ids)
        sent = [
            await state["producer"].send(
                topic_of(one), one.text().encode(), key=str(one.customer_id).encode(),
                headers=[(name, value.encode()) for name, value in one.headers(event_id).items()],
            )
            for one, event_id in zip(decided, ids, strict=True)
        ]  # fmt: skip
        for one in sent:
            await one
        await connection.execute("delete from outbox where id = any($1)", ids)


def topic_of(decided: Decided) -> str:
    """Where its outcome goes."""
    return settings.topics.reversal_completed if decided.code is None else settings.topics.reversal_failed


async def reverse(connection: Any, requests: list[Return]) -> list[Decided]:
    """Lock the customers, read what the decisions need, decide one after the other."""
    org_id = requests[0].org_id
    names = sorted({one.redemption_id for one in requests})
    owners = await connection.fetch(
        "select distinct customer_id from redemption where org_id = $1 and redemption_id = any($2)", org_id, names
    )
    customers = {
        row["customer_id"]: dict(row)
        for row in await connection.fetch(
            "select * from customer where org_id = $1 and customer_id = any($2) order by customer_id for update",
            org_id, sorted(row["customer_id"] for row in owners),
        )
    }  # fmt: skip
    redemptions = {
        row["redemption_id"]: dict(row)
        for row in await connection.fetch(
            "select * from redemption where org_id = $1 and redemption_id = any($2)", org_id, names
        )
    }
    existing = {
        row["idempotency_key"]: row["outcome"]
        for row in await connection.fetch(
            "select idempotency_key, outcome from reversal where org_id = $1 and idempotency_key = any($2)",
            org_id, [one.idempotency_key for one in requests],
        )
    }  # fmt: skip
    phones = {
        row["lookup"]: row["customer_id"]
        for row in await connection.fetch(
            "select lookup, customer_id from identifier where org_id = $1 and type = 'PHONE' and lookup = any($2)",
            org_id, [one.phone for one in requests],
        )
    }  # fmt: skip
    programs = {
        row["program_id"]: dict(row)
        for row in await connection.fetch("select * from program where org_id = $1", org_id)
    }
    assert all(row["live"] and row["reversal_allowed"] for row in programs.values())
    lots = {
        row["lot_id"]: dict(row)
        for row in await connection.fetch(
            "select * from lot where org_id = $1 and lot_id = any($2)",
            org_id, [lot_id for one in redemptions.values() for lot_id in one["lot_ids"]],
        )
    }  # fmt: skip
    balances = {
        (row["customer_id"], row["program_id"]): int(row["points"])
        for row in await connection.fetch(
            """select customer_id, program_id, sum(remaining) as points from lot
            where org_id = $1 and customer_id = any($2) and (expires_at is null or expires_at > now())
            group by customer_id, program_id""",
            org_id, list(customers),
        )
    }  # fmt: skip
    decided = []
    for request in requests:
        redemption = redemptions[request.redemption_id]
        account = (redemption["customer_id"], redemption["program_id"])
        one = decide(
            request, customers[redemption["customer_id"]], redemption, phones.get(request.phone),
            existing.get(request.idempotency_key), lots, balances.get(account, 0),
        )  # fmt: skip
        if one.code is None:
            existing[request.idempotency_key] = one.text()
            balances[account] = balances.get(account, 0) + one.available
        decided.append(one)
    return decided


async def write(connection: Any, decided: list[Decided], raw: Any, ids: list[Any]) -> None:
    """One `executemany` for each kind of change."""
    places = list(zip(decided, raw, ids, strict=True))
    done = [(one, record, event_id) for one, record, event_id in places if one.code is None]
    await connection.executemany(
        "update customer set sequence = $3 where org_id = $1 and customer_id = $2",
        [(one.request.org_id, one.customer_id, one.sequence) for one in decided],
    )
    await connection.executemany(
        "update lot set remaining = remaining + $3 where org_id = $1 and lot_id = $2",
        [(one.request.org_id, lot_id, part) for one, _, _ in done for lot_id, part in one.parts],
    )
    await connection.executemany(
        "update redemption set reversed = reversed + $3 where org_id = $1 and redemption_id = $2",
        [(one.request.org_id, one.request.redemption_id, one.request.points) for one, _, _ in done],
    )
    await connection.executemany(
        REVERSAL, [reversal(one, record.partition, record.offset, event_id) for one, record, event_id in done]
    )
    await connection.executemany(JOURNAL, [journal(one) for one, _, _ in done])
    await connection.executemany(
        REFUSAL,
        [
            refusal(one, record.partition, record.offset, event_id)
            for one, record, event_id in places
            if one.code is not None
        ],
    )
    await connection.executemany(
        OUTBOX,
        [
            (record.partition, record.offset, event_id, str(one.customer_id), one.type, topic_of(one),
             str(one.customer_id).encode(),
             one.text().encode(), json.dumps(one.headers(event_id)), one.at)
            for one, record, event_id in places
        ],
    )  # fmt: skip


if __name__ == "__main__":
    import asyncio

    import uvloop

    uvloop.install()
    asyncio.run(app.run())
