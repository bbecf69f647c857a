-- Invariant 2: redemptions whose `reversed` lies outside 0 and `points`, or is not what was imported plus the sum of
-- their reversals (units alike); reversals of redemptions that are not there.
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them
with given as (
    select v.org_id, v.redemption_id, sum(v.points) as points, coalesce(sum(v.quantity), 0) as units, count(*) as reversals
    from reversal v
    where $1::bigint is null or v.org_id = $1
    group by v.org_id, v.redemption_id
), known as (
    select r.* from redemption r where $1::bigint is null or r.org_id = $1
), broken as materialized (
    select coalesce(r.org_id, g.org_id) as org_id, coalesce(r.redemption_id, g.redemption_id) as "redemptionId",
        case
            when r.redemption_id is null then format('has %s reversals but is not there', g.reversals)
            when not (r.reversed between 0 and r.points)
                then format('%s of %s points are reversed', trim_scale(r.reversed / 1000.0), trim_scale(r.points / 1000.0))
            when r.reversed <> r.imported_reversed + coalesce(g.points, 0)
                then format('%s points are reversed, but %s were imported so and its reversals sum to %s',
                    trim_scale(r.reversed / 1000.0), trim_scale(r.imported_reversed / 1000.0),
                    trim_scale(coalesce(g.points, 0) / 1000.0))
            else format('%s units are reversed, but %s were imported so and its reversals sum to %s',
                r.reversed_quantity, r.imported_reversed_quantity, coalesce(g.units, 0))
        end as fault
    from known r
    full join given g on g.org_id = r.org_id and g.redemption_id = r.redemption_id
    where r.redemption_id is null
        or not (r.reversed between 0 and r.points)
        or r.reversed <> r.imported_reversed + coalesce(g.points, 0)
        or r.reversed_quantity <> r.imported_reversed_quantity + coalesce(g.units, 0)
)
select b.*, count(*) over () as broken
from broken b
order by 1, 2
limit $2
