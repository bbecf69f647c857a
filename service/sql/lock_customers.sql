-- Locks the customers in one order, so that batches of two lanes never wait for each other in a ring.
-- arrays: $1 orgs, $2 customer ids
select org_id, customer_id, status, locked_until, sequence, updated_at
from customer
where (org_id, customer_id) in (select * from unnest($1::text::bigint[], $2::text::bigint[]))
order by org_id, customer_id
for no key update
