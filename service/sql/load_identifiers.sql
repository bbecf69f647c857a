-- Whom identifiers name.
-- arrays: $1 orgs, $2 types, $3 look-ups
select i.org_id, i.type, i.lookup, i.customer_id
from unnest($1::text::bigint[], $2::text::text[], $3::text::text[]) as t (org_id, type, lookup)
join identifier i on i.org_id = t.org_id and i.type = t.type and i.lookup = t.lookup
