-- A reversal as published, by the idempotency key that names it.
-- $1 org, $2 key
select v.outcome from reversal v where v.org_id = $1 and v.idempotency_key = $2
