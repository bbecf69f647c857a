-- Writes the sequences of customers as they stand after the batch.
-- arrays: $1 orgs, $2 customer ids, $3 sequences
update customer c set sequence = t.sequence
from unnest($1::text::bigint[], $2::text::bigint[], $3::text::bigint[]) as t (org_id, customer_id, sequence)
where c.org_id = t.org_id and c.customer_id = t.customer_id
