-- A reward.
-- $1 org, $2 reward id
select w.reward_id, w.max_total, w.redeemed_count, w.status from reward w where w.org_id = $1 and w.reward_id = $2
