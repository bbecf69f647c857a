-- Redemptions by id and by order (of an order at most 1,000, see resolve_customers).
-- arrays: $1 orgs and $2 redemption ids; $3 orgs and $4 order ids
select r.org_id, r.redemption_id, r.customer_id, r.program_id, r.order_id, r.type, r.points, r.reversed,
    r.quantity, r.reversed_quantity, r.reward_id, r.redeemed_at, r.lot_ids, r.lot_points
from unnest($1::text::bigint[], $2::text::text[]) as t (org_id, redemption_id)
join redemption r on r.org_id = t.org_id and r.redemption_id = t.redemption_id
union all
select r.org_id, r.redemption_id, r.customer_id, r.program_id, r.order_id, r.type, r.points, r.reversed,
    r.quantity, r.reversed_quantity, r.reward_id, r.redeemed_at, r.lot_ids, r.lot_points
from unnest($3::text::bigint[], $4::text::text[]) as t (org_id, order_id)
cross join lateral (
    select * from redemption r where r.org_id = t.org_id and r.order_id = t.order_id
    order by r.redemption_id collate "C" limit 1000
) as r
