-- A customer's lots, those first that expire first.
-- $1 org, $2 customer id
select l.lot_id, l.program_id, l.points, l.remaining, l.expires_at, l.restored_from
from lot l
where l.org_id = $1 and l.customer_id = $2
order by l.program_id, l.expires_at nulls last, l.issued_at, l.lot_id
