"""Least privilege: whom the service runs as may decide returns and no more; the schema is its owner's alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.grants import PRIVILEGES, GrantError, lacking
from service.migrate import migrate
from tests import stack as servers
from tests.stack import Stack, as_role

# Of each table and view, what the service may do; with columns where not with all of them.
ALLOWED = {
    "customer": {
        "select", "insert", "delete", "update forgotten", "update locked_until", "update sequence", "update status",
        "update updated_at",
    },
    "identifier": {"select", "insert", "delete", "update customer_id", "update value"},
    "journal": {"select", "insert"},
    "lane": {"select", "insert", "update"},
    "lane_settled": {"select", "insert", "update"},
    "lot": {"select", "insert", "update remaining"},
    "org": {"select"},
    "outbox": {"select", "insert", "delete"},
    "posting": {"select"},
    "program": {"select"},
    "redemption": {"select", "insert", "update reversed", "update reversed_quantity"},
    "refusal": {"select", "insert", "delete"},
    "reversal": {"select", "insert"},
    "reward": {"select", "update redeemed_count", "update status"},
    "schema_migration": {"select"},
    "waiting": {"select", "insert", "delete"},
}  # fmt: skip

FORBIDDEN = (
    "alter table lot add column more integer",
    "alter table journal disable trigger journal_append_only",
    "alter table lot drop constraint lot_remaining",
    "drop table journal",
    "drop trigger journal_append_only on journal",
    "create or replace function refuse_change() returns trigger language plpgsql as 'begin return null; end'",
    "create table more (id integer)",
    "create index more on journal (kind)",
    "truncate outbox",
    *(f"{change} {table}" for table in ("journal", "reversal") for change in ("delete from", "truncate")),
    "truncate refusal",
    "update journal set kind = kind",
    "update reversal set points = points",
    "update refusal set code = code",
    "update redemption set points = points",
    "update redemption set lot_points = lot_points",
    "update lot set points = points",
    "update program set live = live",
    "insert into org (org_id) values (1)",
    "insert into schema_migration (version, name, sha256) values (9, 'x', 'x')",
    "set session_replication_role = replica",
)

HELD = """
    select c.relname as relation, lower(a.privilege_type) as privilege
    from pg_class c, aclexplode(c.relacl) a
    where a.grantee = $1::regrole and c.relnamespace = 'public'::regnamespace
    union all
    select c.relname, lower(a.privilege_type) || ' ' || t.attname
    from pg_class c join pg_attribute t on t.attrelid = c.oid, aclexplode(t.attacl) a
    where a.grantee = $1::regrole and c.relnamespace = 'public'::regnamespace"""


async def held(connection: asyncpg.Connection, role: str) -> dict[str, set[str]]:
    """What a role was granted on tables, views and sequences, and on their columns."""
    found: dict[str, set[str]] = {}
    for row in await connection.fetch(HELD, role):
        found.setdefault(row["relation"], set()).add(row["privilege"])
    return found


@pytest.fixture
async def owner(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
async def runner(database: str, stack: Stack) -> AsyncIterator[asyncpg.Connection]:
    """A connection as whom the service runs as."""
    connection = await asyncpg.connect(as_role(database, stack.run_role))
    yield connection
    await connection.close()


@pytest.fixture
async def stranger(stack: Stack, database: str) -> AsyncIterator[str]:
    """A role to which nothing is granted."""
    role = await servers.create_role(stack.database_url)
    yield role
    connection = await asyncpg.connect(database)
    await connection.execute(f"drop owned by {role}")
    await connection.close()
    await servers.drop_role(stack.database_url, role)


def command(url: str, *words: str) -> Result:
    return CliRunner(env={"REVERSAL_DATABASE_URL": url, "COLUMNS": "300"}).invoke(app, list(words))


async def test_the_service_may_do_exactly_this(owner: asyncpg.Connection, stack: Stack) -> None:
    assert await held(owner, stack.run_role) == ALLOWED


async def test_every_table_and_view_is_considered(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'v', 'm', 'p', 'f')"
    )
    assert {row["relname"] for row in rows} == set(PRIVILEGES)


@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_it_may_not(runner: asyncpg.Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await runner.execute(statement)


async def test_a_grant_takes_back_what_was_given_beyond_it(
    database: str, owner: asyncpg.Connection, stranger: str
) -> None:
    await owner.execute(f"grant all on all tables in schema public to {stranger}")
    await owner.execute(f"grant update (points) on lot to {stranger}")
    assert await migrate(database, [stranger]) == 0
    assert await held(owner, stranger) == ALLOWED


async def test_many_may_grant_at_once(database: str, stranger: str, stack: Stack) -> None:
    assert await asyncio.gather(*(migrate(database, [stranger, stack.run_role]) for _ in range(6))) == [0] * 6


async def test_what_a_role_lacks_is_named(
    database: str, owner: asyncpg.Connection, runner: asyncpg.Connection, stack: Stack
) -> None:
    assert await lacking(owner) == []
    assert await lacking(runner) == []
    await owner.execute(f"revoke update (remaining) on lot from {stack.run_role}")
    await owner.execute(f"revoke delete on outbox from {stack.run_role}")
    assert await lacking(runner) == ["update on lot", "delete on outbox"]
    await migrate(database, [stack.run_role])
    assert await lacking(runner) == []


async def test_a_role_that_is_not_there_or_may_do_everything_anyway_is_refused(
    database: str, owner: asyncpg.Connection, stranger: str
) -> None:
    with pytest.raises(GrantError, match="there is no role nobody_here; make it first"):
        await migrate(database, ["nobody_here"])
    superuser = await owner.fetchval("select current_user")
    with pytest.raises(GrantError, match=f"the role {superuser} is a superuser"):
        await migrate(database, [superuser])
    await owner.execute(f"grant {superuser} to {stranger}")
    with pytest.raises(GrantError, match="may become the owner"):
        await migrate(database, [stranger])


async def test_the_command_grants(database: str, owner: asyncpg.Connection, stranger: str, tmp_path: Path) -> None:
    granted = await asyncio.to_thread(command, database, "migrate", "--grant", stranger)
    assert granted.exit_code == 0, granted.output
    assert f"granted to {stranger} what `run` needs" in granted.stdout
    assert await held(owner, stranger) == ALLOWED
    refused = await asyncio.to_thread(command, database, "migrate", "--grant", "nobody_here")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "there is no role nobody_here" in refused.stderr


async def test_it_may_look_at_everything_but_neither_migrate_nor_load(
    database: str, stack: Stack, tmp_path: Path
) -> None:
    url = as_role(database, stack.run_role)
    assert (await asyncio.to_thread(command, url, "audit")).exit_code == 0
    lines = tmp_path / "lines.jsonl"
    await asyncio.to_thread(lines.write_text, '{"kind": "org", "orgId": 1}\n')
    for words in (["load", str(lines)], ["migrate"]):
        refused = await asyncio.to_thread(command, url, *words)
        assert refused.exit_code == 1, refused.output
        assert "permission denied" in refused.stderr
