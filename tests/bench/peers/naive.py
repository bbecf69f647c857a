"""One transaction for each event, eight at a time: what most would write first. The outcome is sent after the commit.

`python -m tests.bench.peers.naive` with the settings of the service in the environment.
"""

from __future__ import annotations

from typing import Any

import asyncpg
from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker, KafkaMessage

from service.settings import Settings
from tests.bench.peers.plain import Decided, Return, decide, outcome_id

settings = Settings()
broker = KafkaBroker(settings.kafka.bootstrap_servers, enable_idempotence=True, acks="all")
app = FastStream(broker)
state: dict[str, asyncpg.Pool] = {}


@app.on_startup
async def connect() -> None:
    """One connection for each worker."""
    state["pool"] = await asyncpg.create_pool(settings.database_url.get_secret_value(), min_size=8, max_size=8)


@broker.subscriber(
    settings.topics.order_returned,
    group_id=settings.kafka.group_id,
    max_workers=8,
    auto_offset_reset="earliest",
    ack_policy=AckPolicy.ACK_FIRST,
)
async def returned(request: Return, message: KafkaMessage) -> None:
    """One return."""
    raw = message.raw_message
    assert not isinstance(raw, tuple)
    event_id = outcome_id(raw.topic, raw.partition, raw.offset)
    async with state["pool"].acquire() as connection, connection.transaction():
        decided = await reverse(connection, request)
        await write(connection, decided, raw.partition, raw.offset, event_id)
    await broker.publish(
        decided.text(), settings.topics.reversal_completed if decided.code is None else settings.topics.reversal_failed,
        key=str(decided.customer_id).encode(), headers=decided.headers(event_id),
    )  # fmt: skip


async def reverse(connection: Any, request: Return) -> Decided:
    """Lock the customer, read what the decision needs, decide."""
    org_id = request.org_id
    redemption = dict(await connection.fetchrow(
        "select * from redemption where org_id = $1 and redemption_id = $2", org_id, request.redemption_id
    ))  # fmt: skip
    customer = dict(await connection.fetchrow(
        "select * from customer where org_id = $1 and customer_id = $2 for update", org_id, redemption["customer_id"]
    ))  # fmt: skip
    redemption["reversed"] = await connection.fetchval(
        "select reversed from redemption where org_id = $1 and redemption_id = $2", org_id, request.redemption_id
    )
    existing = await connection.fetchval(
        "select outcome from reversal where org_id = $1 and idempotency_key = $2", org_id, request.idempotency_key
    )
    owner = await connection.fetchval(
        "select customer_id from identifier where org_id = $1 and type = 'PHONE' and lookup = $2", org_id, request.phone
    )
    program = await connection.fetchrow(
        "select * from program where org_id = $1 and program_id = $2", org_id, redemption["program_id"]
    )
    assert program["live"]
    assert program["reversal_allowed"]
    rows = await connection.fetch(
        "select * from lot where org_id = $1 and lot_id = any($2)", org_id, redemption["lot_ids"]
    )
    balance = await connection.fetchval(
        """select coalesce(sum(remaining), 0) from lot where org_id = $1 and customer_id = $2 and program_id = $3
        and (expires_at is null or expires_at > now())""",
        org_id, customer["customer_id"], redemption["program_id"],
    )  # fmt: skip
    return decide(
        request, customer, redemption, owner, existing, {row["lot_id"]: dict(row) for row in rows}, int(balance)
    )


async def write(connection: Any, decided: Decided, lane_id: int, offset: int, event_id: Any) -> None:
    """Each change as a statement of its own."""
    request = decided.request
    org_id = request.org_id
    await connection.execute(
        "update customer set sequence = $3 where org_id = $1 and customer_id = $2",
        org_id, decided.customer_id, decided.sequence,
    )  # fmt: skip
    if decided.code is not None:
        await connection.execute(REFUSAL, *refusal(decided, lane_id, offset, event_id))
        return
    for lot_id, part in decided.parts:
        await connection.execute(
            "update lot set remaining = remaining + $3 where org_id = $1 and lot_id = $2", org_id, lot_id, part
        )
    await connection.execute(
        "update redemption set reversed = reversed + $3 where org_id = $1 and redemption_id = $2",
        org_id, request.redemption_id, request.points,
    )  # fmt: skip
    await connection.execute(REVERSAL, *reversal(decided, lane_id, offset, event_id))
    await connection.execute(JOURNAL, *journal(decided))


def reversal(decided: Decided, lane_id: int, offset: int, event_id: Any) -> tuple[Any, ...]:
    """A row of the table."""
    request = decided.request
    return (
        request.org_id, decided.reversal_id, request.idempotency_key, decided.customer_id, decided.outcome["programId"],
        request.redemption_id, decided.entry_id, request.points, decided.available, request.points - decided.available,
        decided.sequence, decided.at, lane_id, offset, event_id, request.fingerprint, decided.text(),
    )  # fmt: skip


def journal(decided: Decided) -> tuple[Any, ...]:
    """A row of the table."""
    request = decided.request
    return (
        request.org_id, decided.entry_id, decided.at, decided.customer_id, request.redemption_id,
        ["redeemed", *["held"] * len(decided.parts)], [request.redemption_id, *[lot_id for lot_id, _ in decided.parts]],
        [-request.points, *[part for _, part in decided.parts]],
    )  # fmt: skip


def refusal(decided: Decided, lane_id: int, offset: int, event_id: Any) -> tuple[Any, ...]:
    """A row of the table."""
    request = decided.request
    return (
        request.org_id, lane_id, offset, event_id, request.idempotency_key, decided.code, decided.name, decided.message,
        decided.customer_id, decided.sequence, request.redemption_id, request.order_id, decided.at,
        decided.text(),
    )  # fmt: skip


REVERSAL = """insert into reversal (org_id, reversal_id, idempotency_key, customer_id, program_id, redemption_id,
    journal_entry_id, points, available, expired, sequence, created_at, lane_id, record_offset, outcome_id, fingerprint,
    outcome) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"""
JOURNAL = """insert into journal (org_id, entry_id, kind, created_at, customer_id, redemption_id, accounts, subjects,
    points) values ($1, $2, 'reversal', $3, $4, $5, $6, $7, $8)"""
REFUSAL = """insert into refusal (org_id, lane_id, record_offset, outcome_id, idempotency_key, code, name, message,
    customer_id, sequence, redemption_id, order_id, failed_at, outcome)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"""


if __name__ == "__main__":
    import asyncio

    import uvloop

    uvloop.install()
    asyncio.run(app.run())
