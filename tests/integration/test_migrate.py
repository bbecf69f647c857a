"""Migrations: each applied once, from however many processes, never backwards; they give exactly the schema."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from importlib.resources import files

import asyncpg
import pytest

from service import migrate as module
from service.migrate import Migration, SchemaError, migrate, migrations, pending
from tests import stack as servers
from tests.stack import Stack

TABLES = {
    "customer", "identifier", "journal", "lane", "lane_settled", "lot", "org", "outbox", "program", "redemption", "refusal",
    "reversal", "reward", "schema_migration", "waiting",
}  # fmt: skip
UPDATE, DELETE, TRUNCATE = "update {} set org_id = 2", "delete from {}", "truncate {}"
REFUSED = (
    *((table, statement) for table in ("journal", "reversal") for statement in (UPDATE, DELETE, TRUNCATE)),
    ("refusal", UPDATE),
    ("refusal", TRUNCATE),
)


@pytest.fixture
async def empty(stack: Stack) -> AsyncIterator[str]:
    """The address of a database without a schema."""
    url = await servers.create_database(stack.database_url)
    yield url
    await servers.drop_database(url)


@pytest.fixture
async def connection(empty: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(empty)
    yield connection
    await connection.close()


async def shape(connection: asyncpg.Connection) -> list[tuple[str, ...]]:
    """Tables with columns, types and defaults, constraints, indexes, triggers, views and functions."""
    rows = await connection.fetch(
        """
        select 'column', table_name, column_name, data_type, coalesce(column_default, ''), is_nullable
        from information_schema.columns where table_schema = 'public'
        union all select 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
        from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n'
        union all select 'index', tablename, indexname, indexdef, '', '' from pg_indexes where schemaname = 'public'
        union all select 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), '', ''
        from pg_trigger where not tgisinternal
        union all select 'view', viewname, definition, '', '', '' from pg_views where schemaname = 'public'
        union all select 'function', proname, prosrc, '', '', '' from pg_proc where pronamespace = 'public'::regnamespace
        order by 1, 2, 3, 4
        """
    )
    return [tuple(row) for row in rows]


async def applied(connection: asyncpg.Connection) -> list[int]:
    return [row["version"] for row in await connection.fetch("select version from schema_migration order by version")]


async def test_an_empty_database_gets_the_whole_schema(empty: str, connection: asyncpg.Connection) -> None:
    assert await pending(connection) == migrations()
    assert await migrate(empty) == len(migrations())
    assert await applied(connection) == [migration.version for migration in migrations()]
    assert await pending(connection) == []
    tables = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    assert {row["tablename"] for row in tables} == TABLES


async def test_a_second_run_applies_nothing(empty: str, connection: asyncpg.Connection) -> None:
    await migrate(empty)
    before = await shape(connection)
    assert await migrate(empty) == 0
    assert await shape(connection) == before


async def test_the_files_alone_give_exactly_the_same_schema(
    empty: str, connection: asyncpg.Connection, template_database: str, stack: Stack
) -> None:
    for file in sorted(files("service").joinpath("migrations").iterdir(), key=lambda file: file.name):
        await connection.execute(file.read_text("utf-8"))
    await connection.execute(module.HISTORY)
    clone = await servers.create_database(stack.database_url, template_database)
    migrated = await asyncpg.connect(clone)
    try:
        assert await shape(connection) == await shape(migrated)
    finally:
        await migrated.close()
        await servers.drop_database(clone)


async def test_many_processes_may_migrate_at_once(empty: str, connection: asyncpg.Connection) -> None:
    program = "import asyncio, sys; from service.migrate import migrate; print(asyncio.run(migrate(sys.argv[1])))"
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, empty, stdout=asyncio.subprocess.PIPE)
        for _ in range(6)
    ]
    answers = [(await process.communicate())[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 6
    assert sorted(answers) == [b"0"] * 5 + [str(len(migrations())).encode()]
    assert await applied(connection) == [migration.version for migration in migrations()]


async def test_many_sessions_of_one_process_too(empty: str) -> None:
    assert sorted(await asyncio.gather(*(migrate(empty) for _ in range(8)))) == [0] * 7 + [len(migrations())]


async def test_it_refuses_to_run_backwards(empty: str, connection: asyncpg.Connection) -> None:
    await migrate(empty)
    before = await shape(connection)
    await connection.execute(
        "insert into schema_migration (version, name, sha256) values (9999, '9999_later.sql', 'x')"
    )
    with pytest.raises(SchemaError, match=r"9999_later\.sql.*do not run backwards"):
        await migrate(empty)
    assert await shape(connection) == before


async def test_it_refuses_a_migration_that_was_changed(empty: str, connection: asyncpg.Connection) -> None:
    await migrate(empty)
    await connection.execute("update schema_migration set sha256 = 'x' where version = 1")
    with pytest.raises(SchemaError, match=r"0001_ledger\.sql was applied with another text"):
        await migrate(empty)


async def test_a_migration_that_fails_leaves_nothing(
    empty: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Migration(9999, "9999_bad.sql", "create table half (id integer); select 1 / 0")
    monkeypatch.setattr(module, "migrations", lambda: [*migrations(), bad])
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(empty)
    assert await shape(connection) == []
    monkeypatch.undo()
    assert await migrate(empty) == len(migrations())


def test_versions_count_up_and_names_tell_them() -> None:
    assert [migration.version for migration in migrations()] == list(range(1, len(migrations()) + 1))
    assert all(migration.name.startswith(f"{migration.version:04d}_") for migration in migrations())


async def test_every_constraint_has_a_name_of_its_own(pool: asyncpg.Pool) -> None:
    made_up = await pool.fetch(
        """select conname from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n'
            and conname ~ '_(pkey|key|fkey|check|excl)[0-9]*$' and conname <> 'reversal_key'"""
    )
    assert [row["conname"] for row in made_up] == []


async def test_append_only_tables_refuse_change(pool: asyncpg.Pool) -> None:
    for table, statement in REFUSED:
        with pytest.raises(asyncpg.RestrictViolationError, match=f"table {table} is append-only"):
            await pool.execute(statement.format(table))
    assert await pool.execute("delete from refusal") == "DELETE 0"  # after refusal_days they are forgotten
