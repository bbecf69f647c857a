-- A lane's own waiting records that are due: past their deadline, or returns whose redemption has come, oldest first. (Not by
-- `exists`, for which the planner may read all redemptions.)
-- $1 lane id, $2 the moment, $3 at most how many
select w.lane_id, l.topic, l.partition, w.record_offset, w.timestamp_ms, w.kind, w.waits_for, w.parked_at, w.deadline,
    w.record_key, w.value, w.headers
from waiting w
join lane l using (lane_id)
where w.lane_id = $1 and (
    w.deadline <= $2
    or (select true from redemption r where r.org_id = w.org_id and r.redemption_id = w.redemption_id)
    or (select true from redemption r where r.org_id = w.org_id and r.order_id = w.order_id limit 1)
)
order by w.parked_at, w.record_offset
limit $3
