-- Invariant 4, first half: lots whose `remaining` is not the sum of their `held` postings; postings of lots that are
-- not there.
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them
with held as (
    select j.org_id, p.subject as lot_id, sum(p.points) as points
    from journal j
    cross join lateral unnest(j.accounts, j.subjects, j.points) as p (account, subject, points)
    where ($1::bigint is null or j.org_id = $1) and p.account = 'held'
    group by j.org_id, p.subject
), known as (
    select l.org_id, l.lot_id, l.remaining from lot l where $1::bigint is null or l.org_id = $1
), broken as materialized (
    select coalesce(l.org_id, h.org_id) as org_id, coalesce(l.lot_id, h.lot_id) as "lotId",
        case
            when l.lot_id is null then format('its postings sum to %s, but it is not there', trim_scale(h.points / 1000.0))
            else format('holds %s points, but its postings sum to %s',
                trim_scale(l.remaining / 1000.0), trim_scale(coalesce(h.points, 0) / 1000.0))
        end as fault
    from known l
    full join held h on h.org_id = l.org_id and h.lot_id = l.lot_id
    where l.lot_id is null or l.remaining <> coalesce(h.points, 0)
)
select b.*, count(*) over () as broken
from broken b
order by 1, 2
limit $2
