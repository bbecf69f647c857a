-- When customers' latest reversals in a program were made, newest first, as many as its limit counts.
-- arrays: $1 orgs, $2 customer ids, $3 program ids, $4 how many, $5 since when
select t.org_id, t.customer_id, t.program_id, r.created_at
from unnest($1::text::bigint[], $2::text::bigint[], $3::text::text[], $4::text::integer[], $5::text::timestamptz[])
    as t (org_id, customer_id, program_id, count, since)
cross join lateral (
    select r.created_at
    from reversal r
    where r.org_id = t.org_id and r.customer_id = t.customer_id and r.program_id = t.program_id
        and r.created_at > t.since
    order by r.created_at desc
    limit t.count
) as r
order by r.created_at desc
