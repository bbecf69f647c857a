-- Adds to what lots hold (a negative number takes away); one row per lot.
-- arrays: $1 orgs, $2 lot ids, $3 points
update lot l set remaining = l.remaining + t.points
from unnest($1::text::bigint[], $2::text::text[], $3::text::bigint[]) as t (org_id, lot_id, points)
where l.org_id = t.org_id and l.lot_id = t.lot_id
