"""What the role that runs the service may do in the database: all that `run` needs, and nothing more.

The owner of the schema migrates and loads. The role of `run` reads everything, so that `show`, `audit`, `lanes` and
`parked` work as it too; it changes only what a decision changes. The append-only tables it can neither update nor
truncate; reversals and the journal it cannot delete from.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.store import Connection, sql

Privileges = tuple[str, ...]

READ: Privileges = ("select",)
APPEND: Privileges = ("select", "insert")

# By table and view. An update names its columns where others of the row must never change.
PRIVILEGES: Mapping[str, Privileges] = {
    "org": READ,
    "program": READ,
    # deleted: those that a batch created for records of which nothing was applied
    "customer": (*APPEND, "update (status, locked_until, sequence, forgotten, updated_at)", "delete"),
    "identifier": (*APPEND, "update (value, customer_id)", "delete"),
    "reward": (*READ, "update (redeemed_count, status)"),
    "lot": (*APPEND, "update (remaining)"),
    "redemption": (*APPEND, "update (reversed, reversed_quantity)"),
    "reversal": APPEND,
    "journal": APPEND,
    "posting": READ,
    "refusal": (*APPEND, "delete"),  # after refusal_days they are forgotten
    "lane": (*APPEND, "update"),
    "lane_settled": (*APPEND, "update"),
    "waiting": (*APPEND, "delete"),
    "outbox": (*APPEND, "delete"),
    "schema_migration": READ,
}


class GrantError(Exception):
    """A role cannot be granted what `run` needs; the message names the role and the way out."""


async def grant(connection: Connection, role: str) -> None:
    """Leave the role with exactly PRIVILEGES on the tables. To be called by their owner, in a transaction that no other
    migration runs beside. Raises GrantError for a role that is not there or may do more by itself."""
    found = await connection.fetchrow(sql("grant_role"), role)
    if found is None:
        raise GrantError(f"there is no role {role}; make it first: create role {role} login password '…'")
    if found["too_mighty"]:
        raise GrantError(
            f"the role {role} is a superuser, or is or may become the owner of the tables: it may do everything with or "
            f"without a grant; name another role"
        )
    name = found["quoted"]
    await connection.execute(f"grant usage on schema {found['schema']} to {name}")
    for table, privileges in PRIVILEGES.items():
        await connection.execute(f"revoke all on table {table} from {name}")
        await connection.execute(f"grant {', '.join(privileges)} on table {table} to {name}")


async def lacking(connection: Connection) -> list[str]:
    """What the connection's role may not do of what `run` needs, as `update on lot`."""
    wanted = [(table, *_parsed(privilege)) for table, listed in PRIVILEGES.items() for privilege in listed]
    rows = [(table, verb, column) for table, verb, columns in wanted for column in columns]
    found = await connection.fetch(sql("lacking_privileges"), *(list(one) for one in zip(*rows, strict=True)))
    return [f"{row['privilege']} on {row['relation']}" for row in found]


def _parsed(privilege: str) -> tuple[str, list[str | None]]:
    """The verb and the columns of `update (a, b)`; without columns the whole table, None."""
    verb, _, columns = privilege.partition(" (")
    return verb, [name.strip() for name in columns.rstrip(")").split(",")] if columns else [None]
