-- Journals what the new lots hold against `opening`; one that holds nothing needs no entry. The ids are UUIDs of version
-- 7: the moment and bits of this load, then the line.
-- $1 the moment, $2 the first 16 digits of the ids, $3 their last 5
insert into journal (org_id, entry_id, kind, created_at, customer_id, redemption_id, accounts, subjects, points)
select s.org_id, ($2::text || '8' || lpad(to_hex(s.line), 10, '0') || $3::text)::uuid, 'import', $1::timestamptz,
    s.customer_id, null, '{opening,held}', array[coalesce(s.program_id, d.program_id), s.lot_id],
    array[-s.remaining, s.remaining]
from staged_lot s
left join default_program d on d.org_id = s.org_id
where s.remaining > 0
order by s.org_id, s.line
