-- All outcomes as published, to find those that are no JSON (only asked where audit_outcomes could not read one).
-- $1 org (null: all)
select v.org_id, v.reversal_id::text as "reversalId", v.outcome
from reversal v
where $1::bigint is null or v.org_id = $1
