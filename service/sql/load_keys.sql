-- The completed reversals that idempotency keys name.
-- arrays: $1 orgs, $2 keys
select r.org_id, r.idempotency_key, r.outcome, r.fingerprint, r.outcome_id::text
from unnest($1::text::bigint[], $2::text::text[]) as t (org_id, idempotency_key)
join reversal r on r.org_id = t.org_id and r.idempotency_key = t.idempotency_key
