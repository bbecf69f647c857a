"""Every statement of the hot path carries org_id: with the ledger's tables hash-partitioned by it, as a distribution
over several servers has them, its plan is read.

The service runs on such tables here, and what it executes is taken down; no list of statements is kept. Of each plan:
every scan of a ledger's table is bound to an org; and once each of those tables is given the constant
`org_id = 100458`, only the partition of that org is left. Postgres adds the constant by itself, by a policy: in the
plan it is what `and t.org_id = 100458` would be, in every place where the statement names the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from service import store
from service.load import load
from service.migrate import migrate
from service.session import session
from service.settings import Settings
from tests.integration.desk import CUSTOMERS, ISSUES, NOW, ORG, REDEMPTIONS, RETURNS, Data, Desk, desk_on
from tests.integration.test_statements import named_by, nodes, statements
from tests.stack import Stack, create_database, drop_database, run

PARTITIONS = 4
ORGS = (ORG, *range(1, 8))
IDLE_ORGS = range(1001, 2001)
CUSTOMERS_EACH = 200  # so many of each that an index is worth while
REFUSALS_EACH = 150

# What need not carry an org, and why. An input partition carries records of many orgs, so what counts where it stands
# and what it still owes Kafka belongs to the lane; a statement that also reads a ledger's table is none of these.
EXEMPT = {
    "lane": "the stored offset of an input partition",
    "lane_settled": "counts of a lane",
    "waiting": "input records that their lane's owner keeps; those that a batch may settle are sought by org_id",
    "outbox": "outcomes in the order in which the lane decided them",
    "schema_migration": "not of the hot path",
}


@dataclass
class Executed:
    """What the service sent to Postgres: statements with the arguments of the last time, and the columns of COPY."""

    statements: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    copies: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def session(self) -> type[store.Session]:
        """A connection as the service's own, which takes everything down."""
        executed = self

        class Noting(store.Session):
            __slots__ = ()

            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.add_query_logger(lambda query: executed.statements.update({query.query: query.args}))

            async def copy_records_to_table(self, table_name: str, **given: Any) -> str:
                executed.copies[table_name] = tuple(given["columns"])
                return await super().copy_records_to_table(table_name, **given)

        return Noting


@dataclass
class Partitioned:
    """A database whose ledger is partitioned by org_id, after the service ran on it."""

    url: str
    run_role: str
    executed: Executed
    tables: dict[str, str]  # the ledger's, by the names of their partitions
    home: str  # what the partitions of ORG end with

    @property
    def statements(self) -> dict[str, tuple[str, tuple[Any, ...]]]:
        """Those that name a table of the ledger, by name, with their arguments."""
        names = {store.sql(name): name for name in statements()}
        return {
            names.get(text, text): (text, arguments)
            for text, arguments in self.executed.statements.items()
            if named_tables(text) & set(self.tables.values())
        }


def named_tables(text: str) -> set[str]:
    """The tables that a statement names, and its CTEs."""
    return set(re.findall(r"\b(?:from|join|into|update)\s+(\w+)", re.sub("--.*", "", text)))


async def partition(url: str) -> None:
    """Put partitioned tables in the place of all that have an org_id and are not exempt: same columns, checks, keys,
    foreign keys, indexes and triggers under the same names."""
    connection = await asyncpg.connect(url)
    tables = await connection.fetch(
        """select c.oid, c.relname as name from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'org_id' and not a.attisdropped
        where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace and c.relname <> all ($1)""",
        list(EXEMPT),
    )
    view = await connection.fetchval("select pg_get_viewdef('posting'::regclass)")
    await connection.execute("drop view posting; create schema plain")
    later: list[str] = []
    for oid, name in tables:
        constraints = await connection.fetch(
            """select format('alter table %I add constraint %I %s', $2::text, conname, pg_get_constraintdef(oid))
            from pg_constraint where conrelid = $1 and contype in ('p', 'u', 'f')""",
            oid,
            name,
        )
        indexes = await connection.fetch(
            """select pg_get_indexdef(indexrelid) from pg_index
            where indrelid = $1 and not exists (select from pg_constraint where conindid = indexrelid)""",
            oid,
        )
        triggers = await connection.fetch(
            "select pg_get_triggerdef(oid) from pg_trigger where tgrelid = $1 and not tgisinternal", oid
        )
        later += [row[0] for row in (*constraints, *indexes, *triggers)]
    for _, name in tables:
        await connection.execute(f"alter table {name} set schema plain")
    for _, name in tables:
        await connection.execute(
            f"create table {name} (like plain.{name} including all excluding indexes) partition by hash (org_id)"
        )
        for remainder in range(PARTITIONS):
            await connection.execute(
                f"create table {name}_p{remainder} partition of {name} "
                f"for values with (modulus {PARTITIONS}, remainder {remainder})"
            )
    for statement in sorted(later, key=lambda text: " FOREIGN KEY " in text):
        await connection.execute(statement)
    await connection.execute("drop schema plain cascade")
    await connection.execute(f"create view posting as {view}")
    await connection.close()


def lines() -> Iterator[Data]:
    """What is loaded, of each org: customers with a phone number, a lot, a redemption of points and one of units."""
    for org_id in IDLE_ORGS:
        yield {"kind": "org", "orgId": org_id}
        yield {"kind": "program", "orgId": org_id, "programId": "main"}
        yield {"kind": "reward", "orgId": org_id, "rewardId": "mug"}
    for org_id in ORGS:
        yield {"kind": "org", "orgId": org_id}
        rules = {"maxReversals": {"count": 100, "days": 30}, "parkUnknownSeconds": 600}
        yield {"kind": "program", "orgId": org_id, "programId": "main", "default": True, **rules}
        yield {"kind": "reward", "orgId": org_id, "rewardId": "mug", "maxTotal": 1000, "redeemedCount": 400}
        for number in range(1, CUSTOMERS_EACH + 1):
            owner = {"orgId": org_id, "customerId": number}
            lot = f"L-{number}"
            taken = {"points": "100", "lots": [{"lotId": lot, "points": "100"}], "redeemedAt": "2026-11-10T00:00:00Z"}
            units = {"type": "UNIT_BASED", "rewardId": "mug", "quantity": 2}
            phone = {"type": "PHONE", "value": f"+65{number:08d}"}
            yield {"kind": "customer", **owner, "identifiers": [phone]}
            yield {"kind": "lot", **owner, "lotId": lot, "points": "300", "remaining": "100"}
            yield {"kind": "redemption", **owner, "redemptionId": f"R-{number}", "orderId": f"SO-{number}", **taken}
            yield {"kind": "redemption", **owner, "redemptionId": f"U-{number}", **taken, **units}


def of_each_org(*values: Data) -> list[Data]:
    return [{"orgId": org_id, **value} for org_id in ORGS for value in values]


async def run_everything(desk: Desk) -> None:
    """Batches in which each kind of record comes to each of its ends, of all orgs."""
    phone, other = ({"type": "PHONE", "value": f"+65{number:08d}"} for number in (1, 2))
    await desk.take_in(
        CUSTOMERS,
        *of_each_org(
            {"customerId": 1, "identifiers": [phone, {"type": "EMAIL", "value": "a@example.org"}]},
            {"customerId": 3, "identifiers": [other]},  # taken over, and given up again
            {"customerId": 3, "identifiers": []},
            {"customerId": 1000, "status": "active"},
        ),
    )
    await desk.take_in(ISSUES, *of_each_org({"customerId": 1, "lotId": "N-1", "points": "50"}))
    mug = {"type": "UNIT_BASED", "rewardId": "mug", "quantity": 1}
    await desk.take_in(
        REDEMPTIONS,
        *of_each_org(
            {"customerId": 1, "redemptionId": "N-1", "orderId": "SO-N-1", "points": "120"},  # from lots of our choice
            {"customerId": 2, "redemptionId": "N-2", "points": "20", "lots": [{"lotId": "L-2", "points": "20"}], **mug},
            {"customerId": 5, "redemptionId": "N-5", "points": "1000"},  # waits for points
            {"customerId": 1001, "redemptionId": "N-6", "points": "1"},  # and so is not created
        ),
    )
    wanted: list[Data] = [
        {"redemptionId": f"R-{number}", "pointsToBeReversed": "10.5", "returnId": f"RMA-{number}",
         "identifier": {"type": "PHONE", "value": f"+65{number:08d}"}}
        for number in range(10, 30)
    ]  # fmt: skip
    wanted += [
        wanted[0],  # 902
        {"orderId": "SO-31", "returnId": "RMA-31"},
        {"redemptionId": "U-32", "quantity": 1, "returnId": "RMA-32"},
        {"redemptionId": "R-33", "pointsToBeReversed": "1000", "returnId": "RMA-33"},  # 817
        {"redemptionId": "LATE", "returnId": "RMA-34"},  # parked
        {"orderId": "SO-NEVER", "returnId": "RMA-35"},  # parked
    ]
    wanted += [
        {"redemptionId": "R-36", "pointsToBeReversed": "1000", "returnId": f"REFUSED-{number}"}
        for number in range(REFUSALS_EACH)
    ]
    returned = desk.send(RETURNS, *of_each_org(*wanted))
    await desk.process.serve(returned, batch=500)
    await desk.take_in(REDEMPTIONS, *of_each_org({"customerId": 6, "redemptionId": "LATE", "points": "10"}))
    await desk.take_in(ISSUES, *of_each_org({"customerId": 5, "lotId": "N-5", "points": "5000"}))
    desk.set_clock(NOW + timedelta(seconds=601))
    await desk.process.serve_due(returned)
    await desk.reset(RETURNS, 0)
    await desk.process.serve(returned, batch=500)
    assert await desk.value("select count(*) from reversal") == len(ORGS) * 23
    assert await desk.waiting() == [f"{REDEMPTIONS}@{3 + 4 * number}" for number in range(len(ORGS))]


async def execute_all(url: str, folder: Path) -> Executed:
    """Load, run, and tell the planner what the tables hold."""
    path = folder / "shop.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines()))
    executed = Executed()
    with pytest.MonkeyPatch.context() as patch:
        async with desk_on(url) as desk:
            async with session(Settings(database_url=SecretStr(url))) as connection:
                assert (await load(connection, path)).booked
            await desk.pool.execute("vacuum analyze")
            patch.setattr(store, "Session", executed.session)
            await desk.restart()  # its connections are made anew
            await run_everything(desk)
            await desk.pool.execute("vacuum analyze")
    return executed


@pytest.fixture(scope="module")
def partitioned(
    stack: Stack, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Partitioned]:
    """The ledger partitioned by org_id, and what the service executed on it; every invariant holds."""
    url = run(create_database(stack.database_url, template_database))
    run(partition(url))
    run(migrate(url, [stack.run_role]))  # the new tables' privileges
    executed = run(execute_all(url, tmp_path_factory.mktemp("routing")))
    tables, home = run(look_up(url))
    yield Partitioned(url, stack.run_role, executed, tables, home)
    run(drop_database(url))


async def look_up(url: str) -> tuple[dict[str, str], str]:
    """The tables by their partitions, and what the partitions of ORG end with."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("select inhrelid::regclass::text, inhparent::regclass::text from pg_inherits")
    home = await connection.fetchval("select tableoid::regclass::text from org where org_id = $1", ORG)
    await connection.close()
    return {row[0]: row[1] for row in rows if re.fullmatch(r"\w+_p\d", row[0])}, home.removeprefix("org")


@pytest.fixture
async def connection(partitioned: Partitioned) -> AsyncIterator[asyncpg.Connection]:
    """In a transaction that is rolled back. Indexes and nested loops, so that a plan shows by what rows are sought."""
    connection = await asyncpg.connect(partitioned.url)
    transaction = connection.transaction()
    await transaction.start()
    for method in ("hashjoin", "mergejoin", "seqscan", "material"):
        await connection.execute(f"set local enable_{method} = off")
    await connection.execute("set local work_mem = '64kB'; set local hash_mem_multiplier = 1")  # no hashed subplans
    yield connection
    await transaction.rollback()
    await connection.close()


async def scans(
    connection: asyncpg.Connection, partitioned: Partitioned, text: str, arguments: Iterable[Any]
) -> list[dict[str, Any]]:
    """The scans of the ledger's tables in a statement's plan."""
    plan = json.loads(await connection.fetchval(f"explain (format json, verbose) {text}", *arguments))
    return [
        node for node in nodes(plan) if node.get("Relation Name") in partitioned.tables and "Scan" in node["Node Type"]
    ]


def is_bound(scan: dict[str, Any]) -> bool:
    """Whether it seeks the rows of given orgs."""
    conditions = " ".join(str(scan.get(kind, "")) for kind in ("Index Cond", "Recheck Cond", "Filter"))
    return re.search(rf"\b{scan['Alias']}\.org_id = ", conditions) is not None


async def give_the_constant(connection: asyncpg.Connection, partitioned: Partitioned, *, but: str = "") -> None:
    """From here on Postgres adds `org_id = ORG` to each table of the ledger that a statement names."""
    for table in set(partitioned.tables.values()) - {but}:
        await connection.execute(f"alter table {table} enable row level security")
        await connection.execute(f"create policy one_org on {table} using (org_id = {ORG})")
    if but:
        await connection.execute(f"alter table {but} disable row level security")
    await connection.execute(f"set local role {partitioned.run_role}")  # an owner is above policies


async def strays(connection: asyncpg.Connection, partitioned: Partitioned) -> dict[str, set[str]]:
    """By statement, the partitions that it reads besides those of ORG."""
    found = {}
    for name, (text, arguments) in partitioned.statements.items():
        read = {scan["Relation Name"] for scan in await scans(connection, partitioned, text, arguments)}
        unread = named_tables(text) & set(partitioned.tables.values()) - {partitioned.tables[one] for one in read}
        assert unread <= appended_to(text), name
        if others := {one for one in read if not one.endswith(partitioned.home)}:
            found[name] = others
    return found


def appended_to(text: str) -> set[str]:
    """The tables that a statement inserts into, where it hands over the org first."""
    return set(re.findall(r"\binsert into (\w+) \(\s*org_id, ", text))


def forgetful(text: str) -> Iterator[str]:
    """The statement as it might have been written, each time without one of its equalities of org_id."""
    for found in re.finditer(r"(\w+)\.org_id = \w+\.org_id and ", text):
        if not any(re.search(rf"\b{table} {found[1]}\b", text) for table in EXEMPT):
            yield text[: found.start()] + text[found.end() :]
    if "(org_id, customer_id) in" in text:
        yield text.replace("(org_id, customer_id) in", "(customer_id, customer_id) in")


class TestRouting:
    async def test_each_table_is_the_ledgers_or_exempt(self, partitioned: Partitioned, pool: asyncpg.Pool) -> None:
        rows = await pool.fetch("select tablename from pg_tables where schemaname = 'public'")
        assert {row[0] for row in rows} == {*partitioned.tables.values(), *EXEMPT}

    def test_every_statement_of_a_batch_ran(self, partitioned: Partitioned) -> None:
        ran = partitioned.executed.statements
        assert [name for name in named_by("prefetch", "commit", "pipeline") if store.sql(name) not in ran] == []

    def test_what_is_copied_begins_with_its_org(self, partitioned: Partitioned) -> None:
        copies = partitioned.executed.copies
        assert copies.keys() - EXEMPT.keys() == {"lot", "redemption"}
        assert {names[0] for table, names in copies.items() if table not in EXEMPT} == {"org_id"}

    async def test_every_scan_is_bound_to_an_org(
        self, partitioned: Partitioned, connection: asyncpg.Connection
    ) -> None:
        for name, (text, arguments) in partitioned.statements.items():
            for scan in await scans(connection, partitioned, text, arguments):
                assert is_bound(scan), (name, scan)

    async def test_with_the_constant_one_partition_of_each_table_is_left(
        self, partitioned: Partitioned, connection: asyncpg.Connection
    ) -> None:
        await give_the_constant(connection, partitioned)
        assert await strays(connection, partitioned) == {}

    async def test_a_statement_that_forgets_org_id_is_found(
        self, partitioned: Partitioned, connection: asyncpg.Connection
    ) -> None:
        tried = 0
        for name, (text, arguments) in partitioned.statements.items():
            for doctored in forgetful(text):
                found = await scans(connection, partitioned, doctored, arguments)
                assert not all(is_bound(scan) for scan in found), name
                tried += 1
        assert tried >= 10

    async def test_a_table_without_the_constant_is_found(
        self, partitioned: Partitioned, connection: asyncpg.Connection
    ) -> None:
        await give_the_constant(connection, partitioned, but="lot")
        found = await strays(connection, partitioned)
        assert found.keys() == {name for name, one in partitioned.statements.items() if "lot" in named_tables(one[0])}
        assert all(len(others) == PARTITIONS - 1 for others in found.values())
