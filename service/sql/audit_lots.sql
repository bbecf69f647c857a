-- Invariant 3, first half: lots that hold less than nothing or more than they were issued with.
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them
with broken as materialized (
    select l.org_id, l.lot_id as "lotId", l.customer_id as "customerId",
        format('holds %s of %s points', trim_scale(l.remaining / 1000.0), trim_scale(l.points / 1000.0)) as fault
    from lot l
    where ($1::bigint is null or l.org_id = $1) and not (l.remaining between 0 and l.points)
)
select b.*, count(*) over () as broken
from broken b
order by 1, 2
limit $2
