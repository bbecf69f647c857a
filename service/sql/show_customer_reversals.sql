-- A customer's latest reversals as published, in their order.
-- $1 org, $2 customer id, $3 at most how many
select v.outcome
from (
    select v.outcome, v.sequence from reversal v where v.org_id = $1 and v.customer_id = $2 order by v.sequence desc limit $3
) as v
order by v.sequence
