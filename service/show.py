"""The story of one thing in the ledger, as the contract shapes it ("Command line", `--json`).

Each function returns a document for JSON, with reversals as the bytes that were published, or raises Wrong where there
is no such thing. All of one story comes from one snapshot.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from service.failures import Misused, Wrong
from service.fields import IDENTIFIER_TYPES, MAX_ID, Unfit, identifier_of
from service.points import format_points
from service.published import exact_time, plain_time
from service.store import Connection, sql

Document = dict[str, Any]


async def reversal(connection: Connection, org_id: int, name: str) -> Document:
    """A reversal as published, by its id or by its idempotency key."""
    outcome = None
    reversal_id = _uuid(name)
    if reversal_id is not None:
        outcome = await connection.fetchval(sql("show_reversal"), org_id, reversal_id)
    if outcome is None:
        outcome = await connection.fetchval(sql("show_reversal_of_key"), org_id, name)
    if outcome is None:
        raise await _missing(connection, org_id, f"reversal {name}, nor a reversal with that idempotency key")
    return orjson.loads(outcome)  # type: ignore[no-any-return]


async def redemption(connection: Connection, org_id: int, redemption_id: str) -> Document:
    """A redemption with its lots, reversals and refusals."""
    row = await connection.fetchrow(sql("show_redemptions"), org_id, redemption_id, None)
    if row is None:
        raise await _missing(connection, org_id, f"redemption {redemption_id}")
    return await _redemption(connection, org_id, row)


async def order(connection: Connection, org_id: int, order_id: str) -> Document:
    """An order: its redemptions, and whatever was refused of it, also before it was known."""
    rows = await connection.fetch(sql("show_redemptions"), org_id, None, order_id)
    ids = [row["redemption_id"] for row in rows]
    refusals = await connection.fetch(sql("show_order_refusals"), org_id, order_id, ids)
    if not rows and not refusals:
        raise await _missing(connection, org_id, f"order {order_id}")
    return {
        "orderId": order_id,
        "redemptions": [await _redemption(connection, org_id, row) for row in rows],
        "refusals": [_refusal(row) for row in refusals],
    }


async def reward(connection: Connection, org_id: int, reward_id: str) -> Document:
    """A reward's stock."""
    row = await connection.fetchrow(sql("show_reward"), org_id, reward_id)
    if row is None:
        raise await _missing(connection, org_id, f"reward {reward_id}")
    return {
        "rewardId": row["reward_id"],
        "maxTotal": row["max_total"],
        "redeemedCount": row["redeemed_count"],
        "status": row["status"],
    }


async def customer(connection: Connection, org_id: int, name: str, *, latest: int, clock: datetime | None) -> Document:
    """A customer, by id or by `TYPE:VALUE` of an identifier: lots, balances, the `latest` reversals and refusals."""
    customer_id = await _customer_id(connection, org_id, name)
    row = None if customer_id is None else await connection.fetchrow(sql("show_customer"), org_id, customer_id)
    if row is None:
        raise await _missing(connection, org_id, f"customer {name}")
    now = await connection.fetchval(sql("show_moment"), clock)
    lots = await connection.fetch(sql("show_lots"), org_id, customer_id)
    balances: dict[str, int] = {}
    for lot in lots:
        spendable = 0 if _expired(lot, now) else lot["remaining"]
        balances[lot["program_id"]] = balances.get(lot["program_id"], 0) + spendable
    reversals = await connection.fetch(sql("show_customer_reversals"), org_id, customer_id, latest)
    refusals = await connection.fetch(sql("show_customer_refusals"), org_id, customer_id, latest)
    identifiers = await connection.fetch(sql("show_identifiers"), org_id, customer_id)
    return {
        "customerId": row["customer_id"],
        "status": row["status"],
        "lockedUntil": _time(row["locked_until"]),
        "identifiers": [dict(identifier) for identifier in identifiers],
        "sequence": row["sequence"],
        "balances": {program_id: format_points(points) for program_id, points in balances.items()},
        "lots": [_lot(lot, now) for lot in lots],
        "reversals": [orjson.Fragment(one["outcome"]) for one in reversals],
        "refusals": [_refusal(one) for one in refusals],
    }


STORIES: dict[str, Callable[[Connection, int, str], Awaitable[Document]]] = {
    "reversal": reversal,
    "redemption": redemption,
    "order": order,
    "reward": reward,
}


async def _redemption(connection: Connection, org_id: int, row: asyncpg.Record) -> Document:
    redemption_id = row["redemption_id"]
    reversals = await connection.fetch(
        sql("show_redemption_reversals"), org_id, row["customer_id"], row["program_id"], redemption_id
    )
    refusals = await connection.fetch(sql("show_redemption_refusals"), org_id, redemption_id)
    lots = zip(row["lot_ids"], row["lot_points"], restored(row["lot_points"], row["reversed"]), strict=True)
    return {
        "redemptionId": redemption_id,
        "orderId": row["order_id"],
        "customerId": row["customer_id"],
        "programId": row["program_id"],
        "type": row["type"],
        "points": format_points(row["points"]),
        "reversed": format_points(row["reversed"]),
        "remaining": format_points(row["points"] - row["reversed"]),
        "quantity": row["quantity"],
        "lots": [
            {"lotId": lot_id, "points": format_points(points), "restored": format_points(back)}
            for lot_id, points, back in lots
        ],
        "reversals": [orjson.Fragment(one["outcome"]) for one in reversals],
        "refusals": [_refusal(one) for one in refusals],
    }


def restored(taken: list[int], given_back: int) -> list[int]:
    """What each lot has got back of `given_back` points, in the order of `taken`: last consumed, first restored."""
    parts = []
    for points in reversed(taken):
        part = min(points, given_back)
        parts.append(part)
        given_back -= part
    return parts[::-1]


async def _customer_id(connection: Connection, org_id: int, name: str) -> int | None:
    if name.isascii() and name.isdigit():
        return int(name) if int(name) <= MAX_ID else None
    kind, colon, value = name.partition(":")
    if not colon or kind not in IDENTIFIER_TYPES or not value:
        raise Misused(f"{name} is no customer id; write its digits, or an identifier such as PHONE:+6591234567")
    if kind == "ID":
        return await _customer_id(connection, org_id, value)
    try:
        identifier = identifier_of(kind, value)
    except Unfit as unfit:
        raise Misused(f"the {kind} in {name} {unfit}") from None
    found: int | None = await connection.fetchval(sql("show_customer_named"), org_id, kind, identifier.lookup)
    return found


async def _missing(connection: Connection, org_id: int, what: str) -> Wrong:
    if await connection.fetchval(sql("show_org"), org_id):
        return Wrong(f"org {org_id} has no {what}")
    return Wrong(f"org {org_id} is not known; `points-reversal load` configures orgs")


def _lot(row: asyncpg.Record, now: datetime) -> Document:
    return {
        "lotId": row["lot_id"],
        "programId": row["program_id"],
        "points": format_points(row["points"]),
        "remaining": format_points(row["remaining"]),
        "expiresAt": _time(row["expires_at"]),
        "expired": _expired(row, now),
    }


def _refusal(row: asyncpg.Record) -> Document:
    return {
        "topic": row["topic"],
        "partition": row["partition"],
        "offset": row["record_offset"],
        "idempotencyKey": row["idempotency_key"],
        "code": row["code"],
        "name": row["name"],
        "message": row["message"],
        "failedAt": exact_time(row["failed_at"]),
    }


def _expired(lot: asyncpg.Record, now: datetime) -> bool:
    return lot["expires_at"] is not None and lot["expires_at"] <= now


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else plain_time(moment)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
