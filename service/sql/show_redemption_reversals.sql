-- The reversals of a redemption as published, in their order. (Looked up by its customer: that has an index.)
-- $1 org, $2 customer id, $3 program id, $4 redemption id
select v.outcome
from reversal v
where v.org_id = $1 and v.customer_id = $2 and v.program_id = $3 and v.redemption_id = $4
order by v.sequence
