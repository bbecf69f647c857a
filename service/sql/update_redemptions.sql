-- Adds to what was given back of redemptions; one row per redemption. units null: not counted in units.
-- arrays: $1 orgs, $2 redemption ids, $3 points, $4 units
update redemption r set reversed = r.reversed + t.points, reversed_quantity = r.reversed_quantity + t.units
from unnest($1::text::bigint[], $2::text::text[], $3::text::bigint[], $4::text::bigint[]) as t (org_id, redemption_id, points, units)
where r.org_id = t.org_id and r.redemption_id = t.redemption_id
