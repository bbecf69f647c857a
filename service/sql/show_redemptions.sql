-- Redemptions by id or by order.
-- $1 org; $2 redemption id and $3 order id, one of them null
select r.redemption_id, r.order_id, r.customer_id, r.program_id, r.type, r.points, r.reversed, r.imported_reversed,
    r.quantity, r.reversed_quantity, r.reward_id, r.redeemed_at, r.lot_ids, r.lot_points
from redemption r
where r.org_id = $1 and r.redemption_id = $2
union all
select r.redemption_id, r.order_id, r.customer_id, r.program_id, r.type, r.points, r.reversed, r.imported_reversed,
    r.quantity, r.reversed_quantity, r.reward_id, r.redeemed_at, r.lot_ids, r.lot_points
from redemption r
where r.org_id = $1 and r.order_id = $3
order by redemption_id
