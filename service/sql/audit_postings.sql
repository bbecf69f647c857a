-- Invariant 1: journal entries whose postings do not sum to zero (or that have none, or halves of one).
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them
select j.org_id, j.entry_id::text as "entryId", j.kind,
    case
        when s.postings = 0 then 'has no postings'
        when s.whole < s.postings then 'has a posting without account, subject or points'
        else format('its postings sum to %s', trim_scale(s.total / 1000.0))
    end as fault,
    count(*) over () as broken
from journal j
cross join lateral (
    select sum(p.points) as total, count(*) as postings,
        count(*) filter (where p.account is not null and p.subject is not null and p.points is not null) as whole
    from unnest(j.accounts, j.subjects, j.points) as p (account, subject, points)
) as s
where ($1::bigint is null or j.org_id = $1)
    and (s.total is distinct from 0 or s.whole < s.postings)
order by j.org_id, j.entry_id
limit $2
