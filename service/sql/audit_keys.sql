-- Invariant 5: idempotency keys that name more than one completed reversal of their org.
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them
with broken as materialized (
    select v.org_id, v.idempotency_key as "idempotencyKey", format('names %s reversals', count(*)) as fault
    from reversal v
    where $1::bigint is null or v.org_id = $1
    group by v.org_id, v.idempotency_key
    having count(*) > 1
)
select b.*, count(*) over () as broken
from broken b
order by 1, 2
limit $2
