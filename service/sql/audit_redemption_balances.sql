-- Invariant 4, second half: redemptions whose points less `reversed` are not the sum of their `redeemed` postings;
-- postings of redemptions that are not there.
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them
with redeemed as (
    select j.org_id, p.subject as redemption_id, sum(p.points) as points
    from journal j
    cross join lateral unnest(j.accounts, j.subjects, j.points) as p (account, subject, points)
    where ($1::bigint is null or j.org_id = $1) and p.account = 'redeemed'
    group by j.org_id, p.subject
), known as (
    select r.org_id, r.redemption_id, r.points - r.reversed as points
    from redemption r
    where $1::bigint is null or r.org_id = $1
), broken as materialized (
    select coalesce(r.org_id, d.org_id) as org_id, coalesce(r.redemption_id, d.redemption_id) as "redemptionId",
        case
            when r.redemption_id is null
                then format('its postings sum to %s, but it is not there', trim_scale(d.points / 1000.0))
            else format('%s points remain, but its postings sum to %s',
                trim_scale(r.points / 1000.0), trim_scale(coalesce(d.points, 0) / 1000.0))
        end as fault
    from known r
    full join redeemed d on d.org_id = r.org_id and d.redemption_id = r.redemption_id
    where r.redemption_id is null or r.points <> coalesce(d.points, 0)
)
select b.*, count(*) over () as broken
from broken b
order by 1, 2
limit $2
