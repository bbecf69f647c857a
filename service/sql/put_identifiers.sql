-- Gives identifiers to customers, also those that named somebody else.
-- arrays: $1 orgs, $2 types, $3 look-ups, $4 values, $5 customer ids
insert into identifier (org_id, type, lookup, value, customer_id)
select org_id, type, lookup, value, customer_id
from unnest($1::text::bigint[], $2::text::text[], $3::text::text[], $4::text::text[], $5::text::bigint[]) as t (org_id, type, lookup, value, customer_id)
order by org_id, type, lookup
on conflict on constraint identifier_pk do update set value = excluded.value, customer_id = excluded.customer_id
