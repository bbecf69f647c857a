-- What was refused of a redemption, in its order.
-- $1 org, $2 redemption id
select l.topic, l.partition, f.record_offset, f.idempotency_key, f.code, f.name, f.message, f.failed_at
from refusal f
join lane l on l.lane_id = f.lane_id
where f.org_id = $1 and f.redemption_id = $2
order by f.failed_at, l.topic, l.partition, f.record_offset
