-- Customers' spendable points in a program at a moment. (The sum of bigints is numeric: it cannot overflow.)
-- arrays: $1 orgs, $2 customer ids, $3 program ids; $4 the moment
select l.org_id, l.customer_id, l.program_id, sum(l.remaining) as points
from unnest($1::text::bigint[], $2::text::bigint[], $3::text::text[]) as t (org_id, customer_id, program_id)
join lot l on l.org_id = t.org_id and l.customer_id = t.customer_id and l.program_id = t.program_id
where l.expires_at is null or l.expires_at > $4
group by l.org_id, l.customer_id, l.program_id
