-- Invariant 3, second half: redemptions that restored more to a lot than they took from it, what was imported as given
-- back (last lot first) counted; one without lots more than its points. A new lot counts for the one it carries on,
-- unless the redemption had taken from the new lot itself. (Both sides are added up instead of joined: where statistics are
-- of a time before the first reversals, the planner would join them row by row.)
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them
with restored as (
    select j.org_id, j.redemption_id, coalesce(l.restored_from, p.subject) as lot_id, sum(p.points) as points,
        case when cardinality(r.lot_ids) = 0 and r.reversed <> 0 then r.points - r.imported_reversed end as without_lots
    from journal j
    cross join lateral unnest(j.accounts, j.subjects, j.points) as p (account, subject, points)
    left join redemption r on r.org_id = j.org_id and r.redemption_id = j.redemption_id
    left join lot l on l.org_id = j.org_id and l.lot_id = p.subject and l.restored_from is not null
        and not p.subject = any (r.lot_ids)
    where ($1::bigint is null or j.org_id = $1) and j.kind = 'reversal' and p.account = 'held'
    group by 1, 2, 3, 5
), taken as (
    select r.org_id, r.redemption_id, t.lot_id,
        least(t.points, greatest(r.points - r.imported_reversed - t.before, 0)) as points
    from redemption r
    cross join lateral (
        select u.lot_id, u.points, sum(u.points) over (order by u.position) - u.points as before
        from unnest(r.lot_ids, r.lot_points) with ordinality as u (lot_id, points, position)
    ) as t
    where ($1::bigint is null or r.org_id = $1) and r.reversed <> 0
), overdone as (
    select org_id, redemption_id, lot_id, sum(restored) as restored, sum(taken) as taken
    from (
        select org_id, redemption_id, lot_id, points as restored, 0 as taken from restored where without_lots is null
        union all
        select org_id, redemption_id, lot_id, 0, points from taken
    ) as both_sides
    group by org_id, redemption_id, lot_id
    having sum(restored) > sum(taken)
    union all
    select org_id, redemption_id, null, sum(points), without_lots
    from restored
    where without_lots is not null
    group by org_id, redemption_id, without_lots
    having sum(points) > without_lots
), broken as materialized (
    select o.org_id, o.redemption_id as "redemptionId", o.lot_id as "lotId",
        format('restored %s points, took %s', trim_scale(o.restored / 1000.0), trim_scale(o.taken / 1000.0)) as fault
    from overdone o
)
select b.*, count(*) over () as broken
from broken b
order by 1, 2, 3
limit $2
