-- Writes customers as they stand after the batch.
-- arrays: $1 orgs, $2 customer ids, $3 statuses, $4 locked until, $5 sequences, $6 updated at
update customer c
set status = t.status, locked_until = t.locked_until, sequence = t.sequence, updated_at = t.updated_at
from unnest($1::text::bigint[], $2::text::bigint[], $3::text::text[], $4::text::timestamptz[], $5::text::bigint[], $6::text::timestamptz[])
    as t (org_id, customer_id, status, locked_until, sequence, updated_at)
where c.org_id = t.org_id and c.customer_id = t.customer_id
