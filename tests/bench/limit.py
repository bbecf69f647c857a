"""The limit: Postgres alone makes the row changes that a finished run of the service made, set-based, from staged tables.

The rows are taken from that run's database and staged in a fresh copy of the loaded one, in batches of the service's
size. A procedure inside the server then does, batch by batch and each in a transaction of its own, the locks and the
writes of the service, outbox and lane included, and none of its reads.
"""

from __future__ import annotations

import asyncio
import io
import time

import asyncpg

STAGED = ("reversal", "journal", "refusal")
STAGE = """
create table staged_reversal (like reversal);
create table staged_journal (like journal);
create table staged_refusal (like refusal);
"""
ARRANGE = """
create table staged as
    select row_number() over (order by lane_id, record_offset) - 1 as number, lane_id, record_offset, outcome_id, org_id,
        customer_id, outcome, failed, redemption_id
    from (
        select lane_id, record_offset, outcome_id, org_id, customer_id, outcome, false as failed, redemption_id
        from staged_reversal
        union all
        select lane_id, record_offset, outcome_id, org_id, customer_id, outcome, true, redemption_id from staged_refusal
    ) as t;
create table batch_reversal as
    select s.number / {batch} as batch, r.* from staged_reversal r join staged s using (outcome_id) order by 1, r.reversal_id;
create table batch_journal as
    select b.batch, j.* from staged_journal j join batch_reversal b on b.journal_entry_id = j.entry_id order by 1, j.entry_id;
create table batch_refusal as
    select s.number / {batch} as batch, r.* from staged_refusal r join staged s using (outcome_id) order by 1;
create table batch_lot as
    select j.batch, j.org_id, p.subject as lot_id, sum(p.points)::bigint as points
    from batch_journal j cross join lateral unnest(j.accounts, j.subjects, j.points) as p (account, subject, points)
    where p.account = 'held' group by 1, 2, 3 order by 1, 2, 3;
create table batch_redemption as
    select batch, org_id, redemption_id, sum(points)::bigint as points from batch_reversal
    group by 1, 2, 3 order by 1, 2, 3;
create table batch_customer as
    select number / {batch} as batch, org_id, customer_id, count(*) as decisions from staged
    group by 1, 2, 3 order by 1, 2, 3;
create table batch_outbox as
    select number / {batch} as batch, 1 + (number / {batch}) % {connections} as lane_id, number as position, outcome_id as id,
        'customer' as aggregatetype, customer_id::text as aggregateid,
        case when failed then 'reversal-failed' else 'reversal-completed' end as type,
        case when failed then 'reversal-failed' else 'reversal-completed' end as topic,
        convert_to(customer_id::text, 'UTF8') as record_key, convert_to(outcome, 'UTF8') as payload,
        format('[["content-type","application/json"],["ce_specversion","1.0"],["ce_id","%s"],["ce_source",'
            '"/points-reversal"],["ce_type","reversal-completed"],["ce_time","2026-11-20T01:30:02.123456Z"],'
            '["ce_subject","%s"],["ce_orgid","%s"]]', outcome_id, redemption_id, org_id) as headers
    from staged order by 1, 3;
create index on batch_reversal (batch);
create index on batch_journal (batch);
create index on batch_refusal (batch);
create index on batch_lot (batch);
create index on batch_redemption (batch);
create index on batch_customer (batch);
create index on batch_outbox (batch);
insert into lane (topic, partition) select 'limit', n from generate_series(1, {connections}) as n;
"""
PROCEDURE = """
create procedure change(mine bigint, others bigint) language plpgsql as $$
declare
    last bigint := (select max(number) / {batch} from staged);
    k bigint := mine;
begin
    while k <= last loop
        perform from lane where lane_id = mine + 1 for no key update;
        perform from customer c where (c.org_id, c.customer_id) in (
            select b.org_id, b.customer_id from batch_customer b where b.batch = k
        ) order by c.org_id, c.customer_id for no key update;
        update customer c set sequence = c.sequence + b.decisions
            from batch_customer b where b.batch = k and c.org_id = b.org_id and c.customer_id = b.customer_id;
        update lot l set remaining = l.remaining + b.points
            from batch_lot b where b.batch = k and l.org_id = b.org_id and l.lot_id = b.lot_id;
        update redemption r set reversed = r.reversed + b.points
            from batch_redemption b where b.batch = k and r.org_id = b.org_id and r.redemption_id = b.redemption_id;
        insert into reversal select {reversal} from batch_reversal where batch = k;
        insert into journal select {journal} from batch_journal where batch = k;
        insert into refusal select {refusal} from batch_refusal where batch = k;
        insert into outbox (lane_id, position, id, aggregatetype, aggregateid, type, topic, record_key, payload, headers,
            created_at)
            select lane_id, position, id, aggregatetype, aggregateid, type, topic, record_key, payload, headers, now()
            from batch_outbox where batch = k;
        delete from outbox where lane_id = mine + 1 and position < k * {batch};
        update lane set next_offset = next_offset + 1, high_offset = next_offset + 1, taken = taken + {batch},
            updated_at = now() where lane_id = mine + 1;
        commit;
        k := k + others;
    end loop;
end $$;
"""


async def limit(source: str, target: str, connections: int, batch: int) -> float:
    """Events per second; `source`: the database of a finished run, `target`: a copy of what was loaded."""
    from_, to = await asyncpg.connect(source), await asyncpg.connect(target)
    try:
        await to.execute(STAGE)
        for table in STAGED:
            rows = io.BytesIO()
            await from_.copy_from_query(f"select * from {table} where true", output=rows, format="binary")
            if table == "journal":  # the imports are there already
                rows = io.BytesIO()
                await from_.copy_from_query(
                    "select * from journal where kind = 'reversal'", output=rows, format="binary"
                )
            rows.seek(0)
            await to.copy_to_table(f"staged_{table}", source=rows, format="binary")
        await to.execute(ARRANGE.format(batch=batch, connections=connections))
        columns = {
            table: ", ".join(
                row[0]
                for row in await to.fetch(
                    "select attname from pg_attribute where attrelid = $1::regclass and attnum > 0 and not attisdropped "
                    "order by attnum",
                    table,
                )
            )
            for table in STAGED
        }
        await to.execute(PROCEDURE.format(batch=batch, **columns))
        await to.execute("vacuum analyze")
        await to.execute("checkpoint")
        events = await to.fetchval("select count(*) from staged")
        workers = [await asyncpg.connect(target) for _ in range(connections)]
        started = time.monotonic()
        try:
            await asyncio.gather(
                *(worker.execute(f"call change({mine}, {connections})") for mine, worker in enumerate(workers))
            )
        finally:
            for worker in workers:
                await worker.close()
        return float(events / (time.monotonic() - started))
    finally:
        await from_.close()
        await to.close()
