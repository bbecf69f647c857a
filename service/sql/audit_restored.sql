-- Invariant 3, second half: redemptions that restored more to a lot than they took from it, what was imported as given
-- back (last lot first) counted; one without lots more than its points. A new lot counts for the one it carries on,
-- unless the redemption had taken from the new lot itself.
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them
with restored as (
    select j.org_id, j.redemption_id, coalesce(l.restored_from, p.subject) as lot_id, sum(p.points) as points
    from journal j
    cross join lateral unnest(j.accounts, j.subjects, j.points) as p (account, subject, points)
    left join redemption r on r.org_id = j.org_id and r.redemption_id = j.redemption_id
    left join lot l on l.org_id = j.org_id and l.lot_id = p.subject and l.restored_from is not null
        and not p.subject = any (r.lot_ids)
    where ($1::bigint is null or j.org_id = $1) and j.kind = 'reversal' and p.account = 'held'
    group by j.org_id, j.redemption_id, coalesce(l.restored_from, p.subject)
), takers as (
    select r.org_id, r.redemption_id, r.points, r.imported_reversed, r.lot_ids, r.lot_points
    from redemption r
    where ($1::bigint is null or r.org_id = $1) and r.reversed <> 0
), taken as (
    select r.org_id, r.redemption_id, t.lot_id,
        least(t.points, greatest(r.points - r.imported_reversed - t.before, 0)) as points
    from takers r
    cross join lateral (
        select u.lot_id, u.points, sum(u.points) over (order by u.position) - u.points as before
        from unnest(r.lot_ids, r.lot_points) with ordinality as u (lot_id, points, position)
    ) as t
), overdone as (
    select s.org_id, s.redemption_id, s.lot_id, s.points as restored, coalesce(t.points, 0) as taken
    from restored s
    left join taken t on t.org_id = s.org_id and t.redemption_id = s.redemption_id and t.lot_id = s.lot_id
    where s.points > coalesce(t.points, 0)
        and not exists (
            select from takers r
            where r.org_id = s.org_id and r.redemption_id = s.redemption_id and cardinality(r.lot_ids) = 0
        )
    union all
    select s.org_id, s.redemption_id, null, sum(s.points), r.points - r.imported_reversed
    from restored s
    join takers r on r.org_id = s.org_id and r.redemption_id = s.redemption_id and cardinality(r.lot_ids) = 0
    group by s.org_id, s.redemption_id, r.points, r.imported_reversed
    having sum(s.points) > r.points - r.imported_reversed
), broken as materialized (
    select o.org_id, o.redemption_id as "redemptionId", o.lot_id as "lotId",
        format('restored %s points, took %s', trim_scale(o.restored / 1000.0), trim_scale(o.taken / 1000.0)) as fault
    from overdone o
)
select b.*, count(*) over () as broken
from broken b
order by 1, 2, 3
limit $2
