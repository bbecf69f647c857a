-- Locks rewards, which customers share, in one order.
-- arrays: $1 orgs, $2 reward ids
select org_id, reward_id, max_total, redeemed_count, status
from reward
where (org_id, reward_id) in (select * from unnest($1::text::bigint[], $2::text::text[]))
order by org_id, reward_id
for no key update
