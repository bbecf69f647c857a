-- Adds the new lots as they stand.
-- $1 the moment that serves where no time of issue is given
insert into lot (org_id, lot_id, customer_id, program_id, points, remaining, expires_at, issued_at)
select s.org_id, s.lot_id, s.customer_id, coalesce(s.program_id, d.program_id), s.points, s.remaining, s.expires_at,
    coalesce(s.issued_at, $1::timestamptz)
from staged_lot s
left join default_program d on d.org_id = s.org_id
order by s.org_id, s.lot_id
