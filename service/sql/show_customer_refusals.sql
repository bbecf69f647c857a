-- What was refused to a customer lately, in its order.
-- $1 org, $2 customer id, $3 at most how many
select f.topic, f.partition, f.record_offset, f.idempotency_key, f.code, f.name, f.message, f.failed_at
from (
    select l.topic, l.partition, f.*
    from refusal f
    join lane l on l.lane_id = f.lane_id
    where f.org_id = $1 and f.customer_id = $2
    order by f.sequence desc limit $3
) as f
order by f.sequence
