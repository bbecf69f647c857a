"""The statements of a batch, each tried by itself, and what the database guards by itself."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from service import migrate
from service.copy_text import array
from service.store import sql
from tests.integration.desk import CUSTOMER, DAY, NOW, ORG, RETURNS
from tests.stack import Stack, create_database, drop_database, run

SERVICE = Path(str(files("service")))
MODULES = ("store", "prefetch", "commit", "pipeline", "lane", "consumer", "app")
OUTCOME_ID = UUID(int=1)
ENTRY_ID = UUID(int=2)
POSITION = 1 << 32
LOT = (ORG, "L", CUSTOMER, "main", 100_000, 40_000, NOW + DAY, NOW - DAY, None)
REDEMPTION = (ORG, "R", CUSTOMER, "main", "SO", "UNIT_BASED", 60_000, 20_000, 3, 1, "mug", NOW - DAY, ["L"], [60_000])
WAITING = (1, RETURNS, 0, 7, 70, RETURNS, "its redemption", NOW, NOW + DAY, b"k", b"{}", "[]")

WHO = {"org_id": ORG, "customer_id": CUSTOMER}
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("org", {"org_id": ORG}),
    ("program", {"org_id": ORG, "program_id": "main", "is_default": True}),
    ("customer", {**WHO, "sequence": 2}),
    ("customer", {"org_id": ORG, "customer_id": 8}),
    ("identifier", {**WHO, "type": "PHONE", "lookup": "65", "value": "65"}),
    ("reward", {"org_id": ORG, "reward_id": "mug", "max_total": 9, "redeemed_count": 3}),
    ("lot", {**WHO, "lot_id": "L", "program_id": "main", "points": 100_000, "remaining": 40_000,
             "expires_at": NOW + DAY, "issued_at": NOW - DAY}),
    ("redemption", {**WHO, "redemption_id": "R", "program_id": "main", "order_id": "SO", "points": 60_000,
                    "reversed": 20_000, "reward_id": "mug", "redeemed_at": NOW - DAY, "lot_ids": ["L"],
                    "lot_points": [60_000], "type": "UNIT_BASED", "quantity": 3, "reversed_quantity": 1,
                    "imported_reversed_quantity": 0}),
    ("reversal", {**WHO, "reversal_id": UUID(int=1), "idempotency_key": "K", "program_id": "main",
                  "redemption_id": "R", "journal_entry_id": ENTRY_ID, "points": 20_000, "available": 20_000,
                  "expired": 0, "quantity": 1, "sequence": 1, "created_at": NOW, "lane_id": 1, "record_offset": 5,
                  "outcome_id": OUTCOME_ID, "fingerprint": b"f", "outcome": "{}"}),
    ("journal", {**WHO, "entry_id": ENTRY_ID, "kind": "reversal", "created_at": NOW, "redemption_id": "R",
                 "accounts": ["redeemed", "held"], "subjects": ["R", "L"], "points": [-20_000, 20_000]}),
    ("refusal", {**WHO, "lane_id": 1, "record_offset": 6, "outcome_id": OUTCOME_ID, "idempotency_key": "K2",
                 "code": 817, "name": "insufficient_points", "message": "m", "sequence": 2, "redemption_id": "R",
                 "order_id": "SO", "failed_at": NOW, "outcome": "{}"}),
    ("lane", {"lane_id": 1, "topic": RETURNS, "partition": 0, "epoch": 1, "next_offset": 2, "high_offset": 3,
              "last_offset": 1, "last_timestamp_ms": 10}),
    ("lane_settled", {"lane_id": 1, "by_lane_id": 2, "completed": 1}),
    ("waiting", {"lane_id": 1, "record_offset": 7, "timestamp_ms": 70, "kind": RETURNS, "org_id": ORG,
                 "order_id": "SO-9", "waits_for": "its redemption", "parked_at": NOW, "deadline": NOW + DAY,
                 "record_key": b"k", "value": b"{}", "headers": "[]"}),
    ("outbox", {"lane_id": 1, "position": POSITION, "id": OUTCOME_ID, "aggregatetype": "customer",
                "aggregateid": "42", "type": "t", "topic": "t", "record_key": b"k", "payload": b"{}",
                "headers": "[]", "created_at": NOW}),
]  # fmt: skip

# Of each statement: its arguments, what Postgres says of it, and (of those that return any) its rows.
STATEMENTS: dict[str, tuple[tuple[Any, ...], str, list[tuple[Any, ...]]]] = {
    "lock_batch": (
        ([1, 2], [ORG, ORG, 1], [8, 9, CUSTOMER], [ORG], ["R"], [ORG], ["SO"], [ORG], ["PHONE"], ["65"], "1s"),
        "SELECT 2",
        [([1], [1], [2], ORG, 8, "active", None, 0, None), ([1], [1], [2], ORG, CUSTOMER, "active", None, 2, None)],
    ),
    "load_batch": (
        (NOW, [ORG, 1], [ORG, 1], ["K", "K"], [ORG, 1], ["R", "R"], [ORG, 1], ["SO", "SO"], [ORG, ORG], ["PHONE", "EMAIL"],
         ["65", "65"], [ORG], ["L"], [ORG], [CUSTOMER], [ORG], [8], [ORG], [8], [ORG], ["R-9"], [ORG], ["SO-9"]),
        "SELECT 1",
        [(NOW, [ORG], [True], ["main"], [True], [True], [3], [True], [True], [None], [0], [None], [None], ["keep"], [None],
          [0], [ORG], ["K"], ["{}"], [b"f"], [str(OUTCOME_ID)], *([one, one] for one in REDEMPTION[:12]),
          '[["L"], \n ["L"]]', "[[60000], \n [60000]]", [ORG], ["PHONE"], ["65"], [CUSTOMER], *([one, one] for one in LOT),
          [ORG], [CUSTOMER], ["main"], [40_000], None, None, None, None, True)],
    ),
    "write_batch": (
        ([1], [1], [5], [4], [40], [3], [1], [1], [0], [0], [0], [1], [POSITION], [ORG], [CUSTOMER], [9], [ORG], ["L"], [-1],
         [ORG], ["R"], [1], [1],
         [ORG], [UUID(int=7)], ["K7"], [CUSTOMER], ["main"], ["R"], [ENTRY_ID], [1], [1], [0], [1], [3], [NOW], [1], [9],
         [OUTCOME_ID], (b"f",), ("{}",),
         [ORG], [UUID(int=8)], ["reversal"], [NOW], [CUSTOMER], ["R"], ('{"redeemed","held"}',), ('{"R","L"}',), ("{-1,1}",),
         [ORG], [1], [10], [OUTCOME_ID], ["K8"], [817], ["insufficient_points"], ["m"], [None], [None], [None], [None], [NOW],
         ("{}",), [1], [POSITION + 1], [OUTCOME_ID], ["customer"], ["42"], ["t"], ["t"], (None,), (b"{}",), ("[]",)),
        "SELECT 1",
        [(1, 1, 1, 1)],
    ),
    "own_lane": ((RETURNS, 0, "me"), "INSERT 0 1", [(1, 2, 2, 3, 1, 10, 1)]),
    "load_owner": ((1,), "SELECT 1", [(1, None)]),
    "end_owner": ((RETURNS, 0), "SELECT 1", [(0,)]),
    "load_outbox": ((1, POSITION - 1, 10), "SELECT 1", [(POSITION, "t", b"k", b"{}", "[]")]),
    "clear_outbox": ((1, POSITION, 1), "DELETE 1", []),
    "measure_outbox": ((), "SELECT 1", []),
    "load_due": ((1, NOW + DAY, 10), "SELECT 1", [WAITING]),
    "load_seen": (
        (1, [ORG, ORG, ORG, ORG], [5, 6, 7, 8], [50, 60, 70, 80], [OUTCOME_ID] * 3 + [ENTRY_ID]),
        "SELECT 2",
        [(str(OUTCOME_ID),)] * 2,
    ),
    "create_customers": (([ORG, ORG, 1], [7, CUSTOMER, 7], None), "INSERT 0 1", [(ORG, 7)]),
    "delete_customers": (([ORG], [8]), "DELETE 1", []),
    "update_customers": (([ORG], [CUSTOMER], ["fraud"], [NOW], [9], [NOW]), "UPDATE 1", []),
    "load_waiting": (([ORG], [8], [ORG], ["R-9"], [ORG], ["SO-9"], 10), "SELECT 1", [WAITING]),
    "delete_waiting": (([1], [7], [70]), "DELETE 1", []),
    "lock_rewards": (([ORG, 1], ["mug", "mug"]), "SELECT 1", [(ORG, "mug", 9, 3, "ACTIVE")]),
    "update_rewards": (([ORG], ["mug"], [9], ["OUT_OF_STOCK"]), "UPDATE 1", []),
    "clear_identifiers": (([ORG], [CUSTOMER]), "DELETE 1", []),
    "drop_identifiers": (([ORG], ["PHONE"], ["65"]), "DELETE 1", []),
    "put_identifiers": (
        ([ORG, ORG], ["PHONE", "PHONE"], ["65", "66"], ["6 5", "66"], [8, 8]),
        "INSERT 0 2",
        [],
    ),
    "settle_lanes": ((9, [1], [1], [0], [0], [0], [0]), "INSERT 0 1", []),
    "forget_refusals": ((NOW + DAY, 10), "SELECT 1", [(1,)]),
}  # fmt: skip


def batch(changes: dict[int, Any]) -> tuple[Any, ...]:
    """The arguments of write_batch, with changes by position."""
    return tuple(changes.get(at, one) for at, one in enumerate(STATEMENTS["write_batch"][0]))


def given(arguments: tuple[Any, ...]) -> list[Any]:
    """Arguments as the service hands them over: lists as text, what is a tuple here as arrays."""
    return [array(one) if isinstance(one, list) else one for one in arguments]


# Of each constraint: the table, and what breaks it in a row that is else as the one there.
CONSTRAINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "schema_migration_pk": ("schema_migration", {}),
    "org_pk": ("org", {}),
    "org_id_positive": ("org", {"org_id": 0}),
    "program_pk": ("program", {"is_default": False}),
    "program_org_fk": ("program", {"org_id": 1}),
    "program_one_default": ("program", {"program_id": "other"}),
    "customer_pk": ("customer", {}),
    "customer_org_fk": ("customer", {"org_id": 1}),
    "customer_id_positive": ("customer", {"customer_id": -1}),
    "customer_status": ("customer", {"status": "asleep"}),
    "customer_sequence": ("customer", {"forgotten": 3}),
    "identifier_pk": ("identifier", {}),
    "identifier_customer_fk": ("identifier", {"lookup": "66", "customer_id": 99}),
    "identifier_type": ("identifier", {"type": "ID"}),
    "reward_pk": ("reward", {}),
    "reward_org_fk": ("reward", {"org_id": 1}),
    "reward_redeemed_count": ("reward", {"redeemed_count": -1}),
    "reward_max_total": ("reward", {"max_total": -1}),
    "reward_status": ("reward", {"status": "GONE"}),
    "lot_pk": ("lot", {}),
    "lot_customer_fk": ("lot", {"lot_id": "M", "customer_id": 99}),
    "lot_program_fk": ("lot", {"lot_id": "M", "program_id": "other"}),
    "lot_points": ("lot", {"points": 0, "remaining": 0}),
    "lot_remaining": ("lot", {"remaining": 100_001}),
    "redemption_pk": ("redemption", {}),
    "redemption_customer_fk": ("redemption", {"redemption_id": "S", "customer_id": 99}),
    "redemption_program_fk": ("redemption", {"redemption_id": "S", "program_id": "other"}),
    "redemption_type": ("redemption", {"type": "GIFT", "quantity": None, "reversed_quantity": None,
                                       "imported_reversed_quantity": None}),
    "redemption_points": ("redemption", {"points": 0, "reversed": 0}),
    "redemption_reversed": ("redemption", {"reversed": 60_001}),
    "redemption_units": ("redemption", {"type": "RAW"}),
    "redemption_quantity": ("redemption", {"reversed_quantity": 4}),
    "redemption_lots": ("redemption", {"lot_points": [1, 2]}),
    "reversal_pk": ("reversal", {}),
    "reversal_key": ("reversal", {"reversal_id": str(UUID(int=3))}),
    "reversal_points": ("reversal", {"available": 1}),
    "journal_pk": ("journal", {}),
    "journal_kind": ("journal", {"kind": "gift"}),
    "refusal_pk": ("refusal", {}),
    "lane_pk": ("lane", {"topic": "other"}),
    "lane_partition": ("lane", {"lane_id": 99}),
    "lane_offsets": ("lane", {"next_offset": 4}),
    "lane_settled_pk": ("lane_settled", {}),
    "waiting_pk": ("waiting", {}),
    "outbox_pk": ("outbox", {}),
}  # fmt: skip

APPEND_ONLY = {"reversal": ("update", "delete", "truncate"), "journal": ("update", "delete", "truncate"),
               "refusal": ("update", "truncate")}  # fmt: skip


@pytest.fixture(scope="module")
def filled_database(stack: Stack, template_database: str) -> Iterator[str]:
    """A database with a row in each table."""
    url = run(create_database(stack.database_url, template_database))
    run(fill(url))
    yield url
    run(drop_database(url))


@pytest.fixture
async def connection(filled_database: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection in a transaction that is rolled back."""
    connection = await asyncpg.connect(filled_database)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


async def fill(url: str) -> None:
    connection = await asyncpg.connect(url)
    for table, row in ROWS:
        places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
        statement = f"insert into {table} ({', '.join(row)}) overriding system value values ({places})"
        await connection.execute(statement, *row.values())
    await connection.close()


def statements() -> list[str]:
    return sorted(file.stem for file in (SERVICE / "sql").glob("*.sql"))


def named_by(*modules: str) -> set[str]:
    """The statements that the modules name."""
    text = "".join((SERVICE / f"{module}.py").read_text() for module in modules)
    return set(re.findall(r"""(?:sql\(|_update\(connection, )"([a-z_]+)\"""", text))


class TestStatements:
    def test_all_of_a_batch_are_tried_here(self) -> None:
        assert named_by(*MODULES) == set(STATEMENTS)

    def test_each_file_is_some_modules(self) -> None:
        text = "".join(file.read_text() for file in SERVICE.rglob("*.py"))
        others = [name for name in statements() if not name.startswith("bulk_")]  # those of `load` are composed
        assert [name for name in others if f'"{name}"' not in text] == []

    @pytest.mark.parametrize("name", statements())
    def test_each_says_what_it_is_for_and_what_its_parameters_are(self, name: str) -> None:
        lines = sql(name).splitlines()
        comment = " ".join(line for line in lines if line.startswith("--"))
        assert lines[0].startswith("-- ")
        assert lines[0][3].isupper()
        used = set(re.findall(r"\$\d+", " ".join(line for line in lines if not line.startswith("--"))))
        assert used <= set(re.findall(r"\$\d+", comment))

    @pytest.mark.parametrize("name", STATEMENTS)
    async def test_each_does_what_it_says(self, connection: asyncpg.Connection, name: str, stack: Stack) -> None:
        arguments, status, rows = STATEMENTS[name]
        await connection.execute(f"set local role {stack.run_role}")
        prepared = await connection.prepare(sql(name))
        found = await prepared.fetch(*given(arguments))
        assert prepared.get_statusmsg() == status
        if rows:
            assert [tuple(row) for row in found] == rows

    @pytest.mark.parametrize("name", sorted(set(STATEMENTS) - {"measure_outbox"}))
    async def test_each_is_served_by_indexes(self, connection: asyncpg.Connection, name: str) -> None:
        """Where an index can be used at all, none of them reads a whole table."""
        await connection.execute("set local enable_seqscan = off")
        await connection.execute("set local plan_cache_mode = force_generic_plan")
        prepared = await connection.prepare(sql(name))
        arguments = given(STATEMENTS[name][0])
        plan = json.loads(json.dumps(await prepared.explain(*arguments)))
        assert [node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan"] == []

    async def test_the_lane_moves_for_the_current_epoch_only(self, connection: asyncpg.Connection) -> None:
        lane, other, *arguments = given(STATEMENTS["write_batch"][0])
        nothing = [() if isinstance(one, tuple) else "{}" for one in STATEMENTS["write_batch"][0][13:]]
        found = await connection.fetchrow(sql("write_batch"), lane, array([2]), *arguments[:11], *nothing)
        assert found is not None
        assert tuple(found) == (0, 0, 0, 0)
        await connection.execute(sql("write_batch"), lane, other, *arguments)
        row = await connection.fetchrow(
            "select next_offset, high_offset, last_offset, taken, dead from lane where lane_id = 1"
        )
        assert row is not None
        assert tuple(row) == (5, 5, 4, 3, 1)

    async def test_the_outbox_is_cleared_for_the_current_epoch_only(self, connection: asyncpg.Connection) -> None:
        assert await connection.execute(sql("clear_outbox"), 1, POSITION, 2) == "DELETE 0"
        assert await connection.execute(sql("clear_outbox"), 1, POSITION - 1, 1) == "DELETE 0"
        assert await connection.execute(sql("clear_outbox"), 1, POSITION, 1) == "DELETE 1"

    async def test_the_limit_is_counted_newest_first(self, connection: asyncpg.Connection) -> None:
        change = "insert into reversal select (jsonb_populate_record(v, $1)).* from reversal v limit 1"
        for number, moment in enumerate((NOW - DAY, NOW + DAY)):
            row = {"reversal_id": str(UUID(int=50 + number)), "idempotency_key": str(number)}
            await connection.execute(change, json.dumps({**row, "created_at": moment.isoformat()}))
        for count, days, moments in (
            (2, 9, [NOW + DAY, NOW]),
            (9, 1, [NOW + DAY, NOW]),
            (9, 2, [NOW + DAY, NOW, NOW - DAY]),
        ):
            await connection.execute(
                "update program set max_reversals_count = $1, max_reversals_days = $2", count, days
            )
            found = await connection.fetchrow(sql("load_batch"), *given(STATEMENTS["load_batch"][0]))
            assert found is not None
            assert found[-2] == moments

    async def test_forgotten_refusals_are_counted_on_their_customers(self, connection: asyncpg.Connection) -> None:
        again = "insert into refusal select (jsonb_populate_record(f, $1)).* from refusal f limit 1"
        for changes in ({"record_offset": 8, "customer_id": None}, {"record_offset": 9, "failed_at": NOW.isoformat()}):
            await connection.execute(again, json.dumps(changes))
        assert await connection.fetchval(sql("forget_refusals"), NOW, 10) == 0
        assert await connection.fetchval(sql("forget_refusals"), NOW + DAY, 2) == 2
        assert await connection.fetchval(sql("forget_refusals"), NOW + DAY, 2) == 1
        counted = "select forgotten from customer where customer_id = $1"
        assert await connection.fetchval(counted, CUSTOMER) == 2


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    """All nodes of a plan as EXPLAIN gives it."""
    if isinstance(plan, list):
        for item in plan:
            yield from nodes(item)
    elif isinstance(plan, dict):
        if "Node Type" in plan:
            yield plan
        for item in plan.values():
            yield from nodes(item)


class TestConstraints:
    @pytest.mark.parametrize("name", CONSTRAINTS)
    async def test_each_bites(self, connection: asyncpg.Connection, name: str) -> None:
        table, breach = CONSTRAINTS[name]
        statement = f"""insert into {table} overriding system value
            select (jsonb_populate_record(t, $1)).* from {table} t order by 1 desc limit 1"""
        with pytest.raises(asyncpg.IntegrityConstraintViolationError) as caught:
            await connection.execute(statement, json.dumps(breach))
        assert caught.value.constraint_name == name

    async def test_each_is_named_in_its_migration_and_tried_here(self, pool: asyncpg.Pool) -> None:
        rows = await pool.fetch(
            """select conname from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n'
            union select indexrelid::regclass::text from pg_index
            join pg_class on pg_class.oid = indexrelid and relnamespace = 'public'::regnamespace where indisunique"""
        )
        names = {row[0] for row in rows}
        assert names == set(CONSTRAINTS)
        text = migrate.HISTORY + "".join(migration.sql for migration in migrate.migrations())
        text = re.sub("--.*", "", text)
        explicit = set(re.findall(r"\bconstraint (\w+)|create unique index (\w+)", text))
        assert names == {one or other for one, other in explicit}

    async def test_org_id_leads_every_key_of_the_ledgers_tables(self, pool: asyncpg.Pool) -> None:
        rows = await pool.fetch(
            """select c.conname, a.attname from pg_constraint c
            join pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
            where c.connamespace = 'public'::regnamespace and c.contype in ('p', 'u', 'f')
            and c.conrelid::regclass::text not in ('lane', 'lane_settled', 'waiting', 'outbox', 'schema_migration')"""
        )
        assert {row["attname"] for row in rows} == {"org_id"}
        assert len(rows) == 19

    async def test_the_ledgers_own_bug_ends_in_an_error(self, connection: asyncpg.Connection) -> None:
        """What the statements of a batch would do with a wrong sum."""
        for name, arguments, constraint in (
            ("write_batch", batch({18: [60_001]}), "lot_remaining"),
            ("write_batch", batch({18: [-40_001]}), "lot_remaining"),
            ("write_batch", batch({21: [40_001], 22: [0]}), "redemption_reversed"),
            ("write_batch", batch({21: [0], 22: [3]}), "redemption_quantity"),
            ("update_rewards", ([ORG], ["mug"], [-1], ["ACTIVE"]), "reward_redeemed_count"),
        ):
            with pytest.raises(asyncpg.CheckViolationError) as caught:
                async with connection.transaction():
                    await connection.execute(sql(name), *given(arguments))
            assert caught.value.constraint_name == constraint


class TestAppendOnlyTables:
    @pytest.mark.parametrize(
        ("table", "change"), [(table, change) for table, changes in APPEND_ONLY.items() for change in changes]
    )
    @pytest.mark.parametrize("rows", [True, False], ids=["with rows", "empty"])
    async def test_refuse_changes(self, connection: asyncpg.Connection, table: str, change: str, rows: bool) -> None:
        where = "" if rows else " where false"
        statement = {
            "update": f"update {table} set org_id = org_id{where}",
            "delete": f"delete from {table}{where}",
            "truncate": f"truncate {table}",
        }[change]
        with pytest.raises(asyncpg.RestrictViolationError, match=f"{table} is append-only: {change} refused"):
            await connection.execute(statement)

    async def test_refusals_may_be_forgotten(self, connection: asyncpg.Connection) -> None:
        assert await connection.execute("delete from refusal") == "DELETE 1"

    async def test_are_guarded_by_triggers_that_nobody_switched_off(self, pool: asyncpg.Pool) -> None:
        rows = await pool.fetch(
            "select tgrelid::regclass::text as name, tgenabled from pg_trigger where not tgisinternal order by 1"
        )
        assert [(row["name"], row["tgenabled"]) for row in rows] == [
            ("journal", b"O"),
            ("refusal", b"O"),
            ("reversal", b"O"),
        ]
