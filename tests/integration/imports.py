"""A stream's load lines put straight into the tables, so that tests of the pipeline do not stand on `load`."""

from __future__ import annotations

from tests.integration.desk import Desk
from tests.model import Model
from tests.streams import Stream


async def import_stream(desk: Desk, stream: Stream) -> Model:
    """Puts what the stream's lines load into the tables; returns the model that it stands in too."""
    model = Model()
    model.load(stream.load_lines, stream.clock)
    for row in stream.rogue_programs:
        model.store_program(row)
    async with desk.pool.acquire() as connection:
        await connection.execute("delete from program; delete from org")
        for org_id, org in model.orgs.items():
            await connection.execute("insert into org values ($1, $2)", org_id, org["reversal_enabled"])
        identifiers = [{**row, "lookup": lookup} for (_, _, lookup), row in model.identifier_rows.items()]
        for table, rows in {
            "program": model.program_rows.values(),
            "customer": model.customers(),
            "identifier": identifiers,
            "reward": model.rewards(),
            "lot": model.lots(),
            "redemption": model.redemptions(),
        }.items():
            for row in rows:
                places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
                statement = f"insert into {table} ({', '.join(row)}) values ({places})"
                await connection.execute(statement, *row.values())
        await connection.execute(
            """insert into journal (org_id, entry_id, kind, created_at, customer_id, accounts, subjects, points)
            select org_id, gen_random_uuid(), 'import', $1::timestamptz, customer_id,
                '{opening,held}'::text[], array[program_id, lot_id], array[-remaining, remaining]
            from lot where remaining > 0
            union all
            select org_id, gen_random_uuid(), 'import', $1::timestamptz, customer_id,
                '{redeemed,opening}'::text[], array[redemption_id, program_id], array[points - reversed, reversed - points]
            from redemption where points > reversed""",
            stream.clock,
        )
    return model
