-- Writes rewards as they stand after the batch.
-- arrays: $1 orgs, $2 reward ids, $3 redeemed counts, $4 statuses
update reward w set redeemed_count = t.redeemed_count, status = t.status
from unnest($1::text::bigint[], $2::text::text[], $3::text::bigint[], $4::text::text[]) as t (org_id, reward_id, redeemed_count, status)
where w.org_id = t.org_id and w.reward_id = t.reward_id
