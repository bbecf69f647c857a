-- Journals what remains of the new redemptions against `opening`; one of which nothing remains needs no entry. The ids
-- are as those of bulk_lot_entries (no line is of both kinds).
-- $1 the moment, $2 the first 16 digits of the ids, $3 their last 5
insert into journal (org_id, entry_id, kind, created_at, customer_id, redemption_id, accounts, subjects, points)
select s.org_id, ($2::text || '8' || lpad(to_hex(s.line), 10, '0') || $3::text)::uuid, 'import', $1::timestamptz,
    s.customer_id, s.redemption_id, '{redeemed,opening}',
    array[s.redemption_id, coalesce(s.program_id, d.program_id)], array[s.points - s.reversed, s.reversed - s.points]
from staged_redemption s
left join default_program d on d.org_id = s.org_id
where s.points > s.reversed
order by s.org_id, s.line
