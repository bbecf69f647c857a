-- Waiting records that a batch may settle, oldest first: the feed records of customers, and the returns for redemptions
-- and orders that may be booked.
-- arrays: $1 orgs and $2 customer ids; $3 orgs and $4 redemption ids; $5 orgs and $6 order ids; $7 at most how many
select w.lane_id, l.topic, l.partition, w.record_offset, w.timestamp_ms, w.kind, w.waits_for, w.parked_at, w.deadline,
    w.record_key, w.value, w.headers
from waiting w
join lane l using (lane_id)
where (w.lane_id, w.record_offset, w.timestamp_ms) in (
    select w.lane_id, w.record_offset, w.timestamp_ms
    from unnest($1::text::bigint[], $2::text::bigint[]) as t (org_id, customer_id)
    join waiting w on w.org_id = t.org_id and w.customer_id = t.customer_id
    union all
    select w.lane_id, w.record_offset, w.timestamp_ms
    from unnest($3::text::bigint[], $4::text::text[]) as t (org_id, redemption_id)
    join waiting w on w.org_id = t.org_id and w.redemption_id = t.redemption_id
    union all
    select w.lane_id, w.record_offset, w.timestamp_ms
    from unnest($5::text::bigint[], $6::text::text[]) as t (org_id, order_id)
    join waiting w on w.org_id = t.org_id and w.order_id = t.order_id
)
order by w.parked_at, l.topic, l.partition, w.record_offset
limit $7
