-- Lots by id.
-- arrays: $1 orgs, $2 lot ids
select l.org_id, l.lot_id, l.customer_id, l.program_id, l.points, l.remaining, l.expires_at, l.issued_at, l.restored_from
from unnest($1::text::bigint[], $2::text::text[]) as t (org_id, lot_id)
join lot l on l.org_id = t.org_id and l.lot_id = t.lot_id
