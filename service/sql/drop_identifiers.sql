-- Removes identifiers that a batch's updates took over and gave up again, whoever had them before.
-- arrays, sorted: $1 orgs, $2 types, $3 look-ups
delete from identifier i using unnest($1::text::bigint[], $2::text::text[], $3::text::text[]) as t (org_id, type, lookup)
where i.org_id = t.org_id and i.type = t.type and i.lookup = t.lookup
