-- A reversal as published, by its id.
-- $1 org, $2 reversal id
select v.outcome from reversal v where v.org_id = $1 and v.reversal_id = $2
