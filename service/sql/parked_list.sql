-- What waits, oldest first. $1 org (null: all), $2 at most how many; `waiting` counts all of them
select l.topic, l.partition, w.record_offset, w.kind, w.org_id, w.customer_id, w.redemption_id, w.order_id, w.waits_for,
    w.parked_at, w.deadline, count(*) over () as waiting
from waiting w
join lane l on l.lane_id = w.lane_id
where $1::bigint is null or w.org_id = $1
order by w.parked_at, l.topic, l.partition, w.record_offset
limit $2
