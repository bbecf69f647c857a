-- Takes back customers that this transaction created for records of which nothing was applied.
-- arrays: $1 orgs, $2 customer ids
delete from customer c using unnest($1::text::bigint[], $2::text::bigint[]) as t (org_id, customer_id)
where c.org_id = t.org_id and c.customer_id = t.customer_id
