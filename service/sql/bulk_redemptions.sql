-- Adds the new redemptions as they stand; they consume nothing.
-- $1 the moment that serves where no time of redemption is given
insert into redemption (org_id, redemption_id, customer_id, program_id, order_id, type, points, reversed,
    imported_reversed, quantity, reversed_quantity, imported_reversed_quantity, reward_id, redeemed_at, lot_ids, lot_points)
select s.org_id, s.redemption_id, s.customer_id, coalesce(s.program_id, d.program_id), s.order_id,
    coalesce(s.type, 'RAW'), s.points, s.reversed, s.reversed, s.quantity, s.reversed_quantity, s.reversed_quantity,
    s.reward_id, coalesce(s.redeemed_at, $1::timestamptz), coalesce(s.lot_ids, '{}'), coalesce(s.lot_points, '{}')
from staged_redemption s
left join default_program d on d.org_id = s.org_id
order by s.org_id, s.redemption_id
