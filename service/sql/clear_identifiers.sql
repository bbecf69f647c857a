-- Removes all identifiers of customers whose set is replaced.
-- arrays: $1 orgs, $2 customer ids
delete from identifier i using unnest($1::text::bigint[], $2::text::bigint[]) as t (org_id, customer_id)
where i.org_id = t.org_id and i.customer_id = t.customer_id
