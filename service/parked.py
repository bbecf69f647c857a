"""What waits: returns for their redemption, feed records for what they need."""

from __future__ import annotations

from typing import Any

import asyncpg

from service.published import exact_time
from service.store import Connection, sql


async def parked(connection: Connection, org_id: int | None, most: int) -> tuple[list[dict[str, Any]], int]:
    """The oldest `most` waiting records, and how many wait in all."""
    rows = await connection.fetch(sql("parked_list"), org_id, most)
    return [_document(row) for row in rows], rows[0]["waiting"] if rows else 0


def _document(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "topic": row["topic"],
        "partition": row["partition"],
        "offset": row["record_offset"],
        "kind": row["kind"],
        "orgId": row["org_id"],
        "customerId": row["customer_id"],
        "redemptionId": row["redemption_id"],
        "orderId": row["order_id"],
        "waitsFor": row["waits_for"],
        "parkedAt": exact_time(row["parked_at"]),
        "deadline": exact_time(row["deadline"]),
    }
