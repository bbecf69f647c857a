-- Invariant 1: journal entries whose postings do not sum to zero (or that have none, or halves of one).
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them
with broken as materialized (
    select j.org_id, j.entry_id::text as "entryId", j.kind,
        case
            when cardinality(j.points) = 0 then 'has no postings'
            when j.total <> 0 then format('its postings sum to %s', trim_scale(j.total / 1000.0))
            else 'has a posting without account, subject or points'
        end as fault
    from (
        select j.org_id, j.entry_id, j.kind, j.points, (select sum(p.points) from unnest(j.points) as p (points)) as total
        from journal j
        where ($1::bigint is null or j.org_id = $1)
            and ((select sum(p.points) from unnest(j.points) as p (points)) is distinct from 0
                or cardinality(j.accounts) <> cardinality(j.points) or cardinality(j.subjects) <> cardinality(j.points)
                or array_position(j.accounts, null) is not null or array_position(j.subjects, null) is not null
                or array_position(j.points, null) is not null)
    ) as j
)
select b.*, count(*) over () as broken
from broken b
order by 1, 2
limit $2
