-- The lots of customers that hold points, for redemptions that leave the choice of lots to the service.
-- arrays: $1 orgs, $2 customer ids
select l.org_id, l.lot_id, l.customer_id, l.program_id, l.points, l.remaining, l.expires_at, l.issued_at, l.restored_from
from unnest($1::text::bigint[], $2::text::bigint[]) as t (org_id, customer_id)
join lot l on l.org_id = t.org_id and l.customer_id = t.customer_id
where l.remaining > 0
