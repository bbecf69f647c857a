"""Brings the database's schema up to date: numbered SQL files, each applied once, all or none, never backwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

import asyncpg

from service.grants import grant
from service.store import Connection

LOCK = 0x706F696E7473  # "points": the advisory lock that lets one process migrate at a time

HISTORY = """
create table if not exists schema_migration (
    version    integer     not null constraint schema_migration_pk primary key,
    name       text        not null,
    sha256     text        not null,
    applied_at timestamptz not null default now()
)"""


class SchemaError(Exception):
    """The database's schema and this build do not fit; the message says which is newer and the way out."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of service/migrations: `0001_ledger.sql` has version 1."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Of the file's text: an applied migration must never change."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All migrations of this build, in order."""
    found = [
        Migration(int(file.name.split("_")[0]), file.name, file.read_text("utf-8"))
        for file in files("service").joinpath("migrations").iterdir()
        if file.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.version)


async def pending(connection: Connection) -> list[Migration]:
    """The migrations that the database lacks; raises SchemaError when it is ahead of this build or differs from it."""
    known = {migration.version: migration for migration in migrations()}
    exists = await connection.fetchval("select to_regclass('schema_migration') is not null")
    applied = await connection.fetch("select version, name, sha256 from schema_migration") if exists else []
    for row in applied:
        migration = known.pop(row["version"], None)
        if migration is None:
            raise SchemaError(
                f"the database has migration {row['name']}, which this build does not know: it was migrated by a newer "
                f"build and migrations do not run backwards; use that build or a newer one"
            )
        if migration.sha256 != row["sha256"]:
            raise SchemaError(
                f"migration {row['name']} was applied with another text than this build has; "
                f"use the build that applied it, or add a new migration instead of changing an old one"
            )
    return sorted(known.values(), key=lambda migration: migration.version)


async def migrate(database_url: str, run_roles: Iterable[str] = ()) -> int:
    """Apply what is missing, and leave each of the roles with what `run` needs; returns how many were applied.

    Safe to run from many processes at once. Raises SchemaError, GrantError.
    """
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("select pg_advisory_lock($1)", LOCK)
        async with connection.transaction():
            await connection.execute(HISTORY)
            missing = await pending(connection)
            for migration in missing:
                await connection.execute(migration.sql)
                await connection.execute(
                    "insert into schema_migration (version, name, sha256) values ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.sha256,
                )
            for role in run_roles:
                await grant(connection, role)
        return len(missing)
    finally:
        await connection.close()
