"""The audit: a sound ledger passes; each invariant, broken on purpose, names the row that breaks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from service.audit import ACROSS_ORGS, CHECKS, Finding, audit
from service.load import load
from service.store import sql
from tests.integration.desk import CUSTOMER, CUSTOMERS, ISSUES, ORG, REDEMPTIONS, RETURNS, Data, Desk, desk_on
from tests.integration.test_statements import nodes

OTHER_ORG = 7
LONG_AGO = "2026-01-01T00:00:00Z"


def line(kind: str, **fields: Any) -> Data:
    return {"kind": kind, "orgId": ORG, "customerId": CUSTOMER, **fields}


LINES = [
    {"kind": "org", "orgId": ORG},
    {"kind": "org", "orgId": OTHER_ORG},
    line("program", programId="main", default=True, parkUnknownSeconds=600),
    line("program", programId="vip", expiredLots={"policy": "extend", "graceDays": 30}),
    line("lot", lotId="A", programId="main", points="100", remaining="20", expiresAt=LONG_AGO),
    line("lot", lotId="B", programId="main", points="60", remaining="10"),
    line("lot", lotId="V", programId="vip", points="80", remaining="0", expiresAt=LONG_AGO),
    line(
        "redemption", redemptionId="R-1", programId="main", orderId="SO-1", points="150", reversed="20",
        lots=[{"lotId": "B", "points": "50"}, {"lotId": "A", "points": "100"}],
    ),
    line("redemption", redemptionId="R-2", programId="main", points="30"),
    line("redemption", redemptionId="R-3", programId="main", type="UNIT_BASED", quantity=3, points="10"),
    line("redemption", redemptionId="R-V", programId="vip", points="80", lots=[{"lotId": "V", "points": "80"}]),
]  # fmt: skip


async def fill(desk: Desk, path: Path) -> None:
    """A bit of everything that the invariants speak of."""
    await asyncio.to_thread(path.write_text, "\n".join(map(json.dumps, LINES)))
    async with desk.pool.acquire() as connection:
        summary = await load(connection, path)
    assert summary.booked, summary.faults
    await desk.take_in(ISSUES, {"customerId": CUSTOMER, "lotId": "C", "points": "40"}, None)
    await desk.take_in(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-4", "points": "25"})
    await desk.take_in(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-5", "points": "9999"})
    await desk.take_in(CUSTOMERS, {"customerId": CUSTOMER, "status": "active"})
    outcomes = await desk.take_in(
        RETURNS,
        {"redemptionId": "R-1", "pointsToBeReversed": "100", "idempotencyKey": "K-1"},
        {"redemptionId": "R-1", "pointsToBeReversed": "31", "idempotencyKey": "K-2"},  # more than remains
        {"redemptionId": "R-2", "idempotencyKey": "K-3"},
        {"redemptionId": "R-3", "quantity": 1, "idempotencyKey": "K-4"},
        {"redemptionId": "R-V", "pointsToBeReversed": "30", "idempotencyKey": "K-5"},
        {"redemptionId": "R-V", "idempotencyKey": "K-5"},  # a key used again
        {"redemptionId": "R-9", "idempotencyKey": "K-6"},  # waits
        b"[",
    )
    assert [one.topic for one in outcomes] == [
        "reversal-completed", "reversal-failed", "reversal-completed", "reversal-completed", "reversal-completed",
        "reversal-failed", "order.returned.dlq",
    ]  # fmt: skip
    await desk.reset(RETURNS, 0)
    await desk.process.serve(desk.partition(RETURNS))  # every record once more


@pytest.fixture
async def ledger(database: str, tmp_path: Path) -> AsyncIterator[asyncpg.Connection]:
    """A sound ledger, and a superuser's hands on it, which no trigger and no foreign key holds."""
    async with desk_on(database) as desk:
        await fill(desk, tmp_path / "ledger.jsonl")
    connection = await asyncpg.connect(database)
    await connection.execute("set session_replication_role = replica")
    yield connection
    await connection.close()


async def findings(connection: asyncpg.Connection, org_id: int | None = None, rows: int = 20) -> list[Finding]:
    return [finding async for finding in audit(connection, org_id, rows)]


async def broken(connection: asyncpg.Connection, org_id: int | None = None) -> dict[str, list[Data]]:
    """The broken rows by invariant."""
    return {one.check.name: one.broken for one in await findings(connection, org_id) if one.count}


class Breach(NamedTuple):
    """Statements that break one invariant, and what of the named row is known: all but its words."""

    invariant: int
    statements: str
    row: Data
    words: str


def drop(table: str, constraint: str) -> str:
    return f"alter table {table} drop constraint {constraint};"


BREACHES = {
    "postings that do not sum to zero": Breach(
        1,
        "update journal set points[1] = points[1] - 5000 where kind = 'issue'",
        {"orgId": ORG, "kind": "issue"},
        "sum to -5",
    ),
    "an entry without postings": Breach(
        1,
        "insert into journal values (7, gen_random_uuid(), 'import', now(), 1, null, '{}', '{}', '{}')",
        {"orgId": OTHER_ORG, "kind": "import"},
        "no postings",
    ),
    "half a posting": Breach(
        1,
        """insert into journal values
            (7, gen_random_uuid(), 'import', now(), 1, null, '{opening}', '{main,main}', '{0,0}')""",
        {"orgId": OTHER_ORG, "kind": "import"},
        "posting without account",
    ),
    "reversed more than its points": Breach(
        2,
        drop("redemption", "redemption_reversed")
        + "update redemption set reversed = 31000 where redemption_id = 'R-2'",
        {"orgId": ORG, "redemptionId": "R-2"},
        "31 of 30 points",
    ),
    "reversed by nobody": Breach(
        2,
        "update redemption set reversed = reversed + 1000 where redemption_id = 'R-1'",
        {"orgId": ORG, "redemptionId": "R-1"},
        "121 points are reversed, but 20 were imported so and its reversals sum to 100",
    ),
    "units given back by nobody": Breach(
        2,
        "update redemption set reversed_quantity = 2 where redemption_id = 'R-3'",
        {"orgId": ORG, "redemptionId": "R-3"},
        "2 units are reversed, but 0 were imported so and its reversals sum to 1",
    ),
    "a reversal of nothing": Breach(
        2,
        "update reversal set redemption_id = 'R-0' where redemption_id = 'R-2'",
        {"orgId": ORG, "redemptionId": "R-0"},
        "has 1 reversals but is not there",
    ),
    "a lot that holds too much": Breach(
        3,
        drop("lot", "lot_remaining") + "update lot set remaining = 61000 where lot_id = 'B'",
        {"orgId": ORG, "lotId": "B", "customerId": CUSTOMER},
        "holds 61 of 60 points",
    ),
    "a lot that got back too much": Breach(
        3,
        "update journal set points = array[-100000, 81000, 19000] where redemption_id = 'R-1' and kind = 'reversal'",
        {"orgId": ORG, "redemptionId": "R-1", "lotId": "A"},
        "restored 81 points, took 80",  # of 100, 20 had come back before the import
    ),
    "a new lot that carries on too much": Breach(
        3,
        "update journal set points = array[-81000, 81000] where redemption_id = 'R-V' and kind = 'reversal'",
        {"orgId": ORG, "redemptionId": "R-V", "lotId": "V"},
        "restored 81 points, took 80",
    ),
    "more than the points of a redemption without lots": Breach(
        3,
        "update journal set points = array[-30001, 30001] where redemption_id = 'R-2' and kind = 'reversal'",
        {"orgId": ORG, "redemptionId": "R-2"},
        "restored 30.001 points, took 30",
    ),
    "a lot that holds what nobody booked": Breach(
        4,
        "update lot set remaining = remaining - 1000 where lot_id = 'B'",
        {"orgId": ORG, "lotId": "B"},
        "but its postings sum to",
    ),
    "postings of a lot that is gone": Breach(
        4, "delete from lot where lot_id = 'C'", {"orgId": ORG, "lotId": "C"}, "but it is not there"
    ),
    "a redemption of other points than were booked": Breach(
        4,
        "update redemption set points = points + 500 where redemption_id = 'R-1'",
        {"orgId": ORG, "redemptionId": "R-1"},
        "30.5 points remain, but its postings sum to 30",
    ),
    "postings of a redemption that is gone": Breach(
        4, "delete from redemption where redemption_id = 'R-4'", {"orgId": ORG, "redemptionId": "R-4"}, "not there"
    ),
    "a key that names two reversals": Breach(
        5,
        drop("reversal", "reversal_key") + "update reversal set idempotency_key = 'K-3' where idempotency_key = 'K-1'",
        {"orgId": ORG, "idempotencyKey": "K-3"},
        "names 2 reversals",
    ),
    "a record that is nowhere": Breach(
        6, "delete from waiting where kind = 'order.returned'", {"topic": RETURNS, "partition": 0}, "16 taken, but"
    ),
    "a completed record without a reversal": Breach(
        6,
        "update lane set completed = completed + 1, failed = failed - 1 where topic = 'order.returned'",
        {"topic": RETURNS, "partition": 0},
        "5 completed, but it has 4 reversals",
    ),
    "records of no lane": Breach(
        6,
        "insert into lane_settled (lane_id, by_lane_id) values (99, 1)",
        {"laneId": 99},
        "has records but is not there",
    ),
    "an outcome that is no JSON": Breach(
        7, "update reversal set outcome = '{' || outcome where idempotency_key = 'K-3'", {"orgId": ORG}, "no JSON"
    ),
    "an outcome that Postgres cannot read": Breach(
        7,
        r"update reversal set outcome = replace(outcome, 'order returned', '\u0000') where idempotency_key = 'K-3'",
        {"orgId": ORG},
        "holds a NUL",
    ),
    "an outcome with other points": Breach(
        7,
        """update reversal set outcome = replace(outcome, '"pointsReversed":"30"', '"pointsReversed":"29"')
            where idempotency_key = 'K-3'""",
        {"orgId": ORG},
        "its outcome says otherwise",
    ),
    "an outcome with another split": Breach(
        7,
        """update reversal set outcome = replace(outcome, '"expired":"80"', '"expired":"79"')""",
        {"orgId": ORG},
        "its outcome says otherwise",
    ),
    "an outcome of another key": Breach(
        7,
        """update reversal set outcome = replace(outcome, '"K-1"', '"K-0"')""",
        {"orgId": ORG},
        "names other ids, key, quantity or sequence",
    ),
    "an outcome with other lots": Breach(
        7,
        """update reversal set outcome = replace(outcome, '"lotId":"B"', '"lotId":"C"')""",
        {"orgId": ORG},
        "restores other lots",
    ),
    "an outcome with other points of a lot": Breach(
        7,
        """update reversal set outcome = replace(outcome, '"lotId":"B","points":"20"', '"lotId":"B","points":"19"')""",
        {"orgId": ORG},
        "restores other lots",
    ),
    "a lot that is said to be spendable": Breach(
        7,
        """update reversal set outcome = replace(outcome, '"expired":true', '"expired":false')""",
        {"orgId": ORG},
        "lots that are not expired sum to 100, its available points are 20",
    ),
    "a split that the lots do not bear out": Breach(
        7,
        """update reversal set available = 21000, expired = 79000, outcome =
            replace(replace(outcome, '"available":"20","expired":"80"', '"available":"21","expired":"79"'), 'x', 'x')
            where idempotency_key = 'K-1'""",
        {"orgId": ORG},
        "lots that are not expired sum to 20, its available points are 21",
    ),
    "a reversal without its entry": Breach(
        7,
        "update journal set entry_id = gen_random_uuid() where kind = 'reversal' and redemption_id = 'R-2'",
        {"orgId": ORG},
        "its journal entry is not there",
    ),
    "an entry without its reversal": Breach(
        7,
        "update journal set entry_id = gen_random_uuid() where kind = 'reversal' and redemption_id = 'R-2'",
        {"orgId": ORG},
        "no reversal names this journal entry",
    ),
    "an entry of another redemption": Breach(
        7,
        "update journal set redemption_id = 'R-4' where kind = 'reversal' and redemption_id = 'R-3'",
        {"orgId": ORG},
        "another customer or redemption",
    ),
    "a gap in a sequence": Breach(
        8,
        "update customer set sequence = sequence + 1",
        {"orgId": ORG, "customerId": CUSTOMER},
        "the sequence is 7, but there are 6 decisions and 0 forgotten ones",
    ),
    "a number that comes twice": Breach(
        8,
        "update refusal set sequence = 1",
        {"orgId": ORG, "customerId": CUSTOMER},
        "6 decisions have 4 different numbers",
    ),
    "a number beyond the sequence": Breach(
        8,
        "update refusal set sequence = 99 where idempotency_key = 'K-2'",
        {"orgId": ORG, "customerId": CUSTOMER},
        "numbered 1 to 99, the sequence is 6",
    ),
    "a refusal that was forgotten and is still there": Breach(
        8, "update customer set forgotten = 1", {"orgId": ORG, "customerId": CUSTOMER}, "6 decisions and 1 forgotten"
    ),
    "decisions of nobody": Breach(
        8, "delete from customer", {"orgId": ORG, "customerId": CUSTOMER}, "has 6 decisions but is not there"
    ),
}


async def test_a_sound_ledger_passes_each_check(ledger: asyncpg.Connection) -> None:
    found = await findings(ledger)
    assert [(one.check.number, one.broken) for one in found] == [(number, []) for number in range(1, 9)]
    assert [one.document() for one in found] == [{"name": check.name, "broken": []} for check in CHECKS]


async def test_a_broken_invariant_names_its_row(ledger: asyncpg.Connection) -> None:
    amiss = {}
    for name, breach in BREACHES.items():
        transaction = ledger.transaction(isolation="repeatable_read")
        await transaction.start()
        await ledger.execute(breach.statements)
        rows = (await broken(ledger)).get(CHECKS[breach.invariant - 1].name, [])
        named = [row for row in rows if breach.row.items() <= row.items() and breach.words in row["fault"]]
        if len(named) != 1:
            amiss[name] = rows
        await transaction.rollback()
    assert amiss == {}
    assert await broken(ledger) == {}


def test_every_invariant_is_broken_by_some_test() -> None:
    assert {breach.invariant for breach in BREACHES.values()} == {check.number for check in CHECKS} == set(range(1, 9))


async def test_an_org_can_be_checked_alone(ledger: asyncpg.Connection) -> None:
    await ledger.execute("update customer set sequence = sequence + 1")
    assert list(await broken(ledger, ORG)) == ["sequences"]
    assert await broken(ledger, OTHER_ORG) == {}


async def test_of_many_broken_rows_some_are_named_and_all_counted(ledger: asyncpg.Connection) -> None:
    await ledger.execute(
        "insert into customer (org_id, customer_id, sequence) select 7, n, 1 from generate_series(1, 50) n"
    )
    finding = (await findings(ledger, rows=3))[7]
    assert finding.count == 50
    assert [row["customerId"] for row in finding.broken] == [1, 2, 3]
    assert finding.document()["more"] == 47


async def test_refusals_that_are_forgotten_leave_no_gap(ledger: asyncpg.Connection) -> None:
    await ledger.execute("delete from refusal")
    assert list(await broken(ledger)) == ["sequences"]
    await ledger.execute("update customer set forgotten = 2")
    assert await broken(ledger) == {}


async def test_all_checks_see_one_snapshot(ledger: asyncpg.Connection, database: str) -> None:
    other = await asyncpg.connect(database)
    try:
        found = []
        async for finding in audit(ledger, None, 5):
            found.append(finding)
            if len(found) == 1:
                await other.execute("set session_replication_role = replica")
                await other.execute("update customer set sequence = sequence + 1")
                await other.execute("update lane set taken = taken + 1")
        assert [one.check.name for one in found if one.count] == []
    finally:
        await other.close()
    assert list(await broken(ledger)) == ["lanes", "sequences"]


async def test_the_audit_writes_nothing(ledger: asyncpg.Connection) -> None:
    before = await ledger.fetchval("select pg_current_xact_id_if_assigned()")
    async for _ in audit(ledger, None, 5):
        assert await ledger.fetchval("select pg_current_xact_id_if_assigned()") is None
        assert await ledger.fetchval("show transaction_read_only") == "on"
    assert before is None


async def test_no_check_reads_a_table_again_for_each_row(pool: asyncpg.Pool) -> None:
    """Also where the planner knows the tables as a large load left them, without a single reversal."""
    for statement in (
        "insert into org values (1)",
        "insert into program (org_id, program_id) values (1, 'main')",
        "insert into customer (org_id, customer_id) select 1, n from generate_series(1, 5000) n",
        """insert into lot (org_id, lot_id, customer_id, program_id, points, remaining, issued_at)
            select 1, 'L-' || n, n, 'main', 1, 0, now() from generate_series(1, 5000) n""",
        """insert into redemption (org_id, redemption_id, customer_id, program_id, type, points, redeemed_at, lot_ids,
            lot_points) select 1, 'R-' || n, n, 'main', 'RAW', 1, now(), array['L-' || n], array[1]
            from generate_series(1, 5000) n""",
        """insert into journal (org_id, entry_id, kind, created_at, customer_id, accounts, subjects, points)
            select 1, gen_random_uuid(), 'import', now(), n, array['redeemed', 'opening'], array['R-' || n, 'main'],
            array[1, -1] from generate_series(1, 5000) n""",
        "vacuum analyze",
    ):
        await pool.execute(statement)
    names = [name for check in CHECKS for name in check.statements if name not in ACROSS_ORGS]
    for name in names:
        plan = json.loads(await pool.fetchval(f"explain (format json) {sql(name)}", None, 5))
        loops = [node["Plans"][1] for node in nodes(plan) if node["Node Type"] == "Nested Loop"]
        again = [node["Node Type"] for inner in loops for node in nodes(inner) if reads_all(node)]
        assert again == [], name


def reads_all(node: Data) -> bool:
    """Whether a node of a plan reads a table or a CTE from its beginning to its end."""
    kind = node["Node Type"]
    return kind in ("Seq Scan", "CTE Scan") or (kind.startswith("Index") and "Index Cond" not in node)
