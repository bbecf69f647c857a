"""Checks the invariants of the ledger over the whole database, all in one snapshot.

Each invariant is one or two statements in service/sql/audit_*.sql that return the rows which break it, with a `fault`
in plain words; no row: it holds.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson

from service.store import Connection, sql

# Sorts and hashes of this many KiB stay in memory: a million reversals need about half of it.
WORK_MEM_KIB = 256 * 1024


@dataclass(frozen=True, slots=True)
class Check:
    """An invariant: its number in the contract, a name for scripts, its meaning, and its statements."""

    number: int
    name: str
    meaning: str
    statements: tuple[str, ...]


CHECKS = (
    Check(1, "postings", "the postings of each journal entry sum to zero", ("audit_postings",)),
    Check(
        2,
        "reversed",
        "what is reversed of a redemption is what was imported plus its reversals",
        ("audit_redemptions",),
    ),
    Check(
        3,
        "restored",
        "no lot holds more than it was issued with or got back more than was taken from it",
        ("audit_lots", "audit_restored"),
    ),
    Check(
        4,
        "balances",
        "lots and redemptions hold the sum of their postings",
        ("audit_lot_balances", "audit_redemption_balances"),
    ),
    Check(5, "keys", "a key names at most one completed reversal of its org", ("audit_keys",)),
    Check(6, "lanes", "the records taken of each input partition are accounted for", ("audit_lanes",)),
    Check(7, "outcomes", "the outcomes as published are what the ledger holds", ("audit_outcomes",)),
    Check(8, "sequences", "the sequence of each customer has no gap and no repeat", ("audit_sequences",)),
)
ACROSS_ORGS = {"audit_lanes"}  # a lane carries the records of all orgs


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: the first rows that break the invariant, and how many there are in all."""

    check: Check
    broken: list[dict[str, Any]]
    count: int
    seconds: float

    def document(self) -> dict[str, Any]:
        """As `--json` prints it; `more` only where not all broken rows are listed."""
        more = self.count - len(self.broken)
        return {"name": self.check.name, "broken": self.broken} | ({"more": more} if more else {})


async def audit(connection: Connection, org_id: int | None, rows: int) -> AsyncIterator[Finding]:
    """The findings, one after another; at most `rows` broken rows of each statement are named."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute(f"set local work_mem = {WORK_MEM_KIB:d}")
        for check in CHECKS:
            started = time.monotonic()
            broken: list[dict[str, Any]] = []
            count = 0
            for statement in check.statements:
                found, in_all = await _run(connection, statement, org_id, rows)
                broken += found
                count += in_all
            yield Finding(check, broken, count, time.monotonic() - started)


async def _run(
    connection: Connection, statement: str, org_id: int | None, rows: int
) -> tuple[list[dict[str, Any]], int]:
    parameters = (rows,) if statement in ACROSS_ORGS else (org_id, rows)
    try:
        async with connection.transaction():  # a savepoint, so that the snapshot outlives a statement that fails
            found = await connection.fetch(sql(statement), *parameters)
    except asyncpg.DataError as error:
        broken, count = await _unreadable_outcomes(connection, org_id, rows)
        # What is JSON, but not for Postgres, is found by nobody else.
        return (broken, count) if count else ([{"fault": f"an outcome cannot be read by Postgres: {error}"}], 1)
    return [_row(dict(record)) for record in found], found[0]["broken"] if found else 0


async def _unreadable_outcomes(
    connection: Connection, org_id: int | None, rows: int
) -> tuple[list[dict[str, Any]], int]:
    """The outcomes that are no JSON, which no statement can find before Postgres 16."""
    broken: list[dict[str, Any]] = []
    count = 0
    async for record in connection.cursor(sql("audit_outcome_texts"), org_id, prefetch=1000):
        fault = _unreadable(record["outcome"])
        if fault is not None:
            count += 1
            if count <= rows:
                fault += "; the other outcomes were not compared"
                broken.append({"orgId": record["org_id"], "reversalId": record["reversalId"], "fault": fault})
    return broken, count


def _unreadable(outcome: str) -> str | None:
    try:
        orjson.loads(outcome)
    except orjson.JSONDecodeError:
        return "its outcome is no JSON"
    return "its outcome holds a NUL" if "\\u0000" in outcome else None


def _row(record: dict[str, Any]) -> dict[str, Any]:
    del record["broken"]
    if "org_id" in record:
        record = {"orgId": record.pop("org_id"), **record}
    return {name: value for name, value in record.items() if value is not None}
