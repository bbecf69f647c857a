-- What was refused of an order or of its redemptions, in its order, each refusal once.
-- $1 org, $2 order id, $3 its redemptions
select l.topic, l.partition, f.record_offset, f.idempotency_key, f.code, f.name, f.message, f.failed_at
from (
    select * from refusal f where f.org_id = $1 and f.order_id = $2
    union
    select * from refusal f where f.org_id = $1 and f.redemption_id = any ($3::text[])
) as f
join lane l on l.lane_id = f.lane_id
order by f.failed_at, l.topic, l.partition, f.record_offset
