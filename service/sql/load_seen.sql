-- Which records of a lane already have an outcome or wait: for records below the lane's high offset.
-- $1 lane id; arrays: $2 orgs, $3 offsets, $4 timestamps (ms), $5 outcome ids
select t.outcome_id
from unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::uuid[]) as t (org_id, record_offset, timestamp_ms, outcome_id)
where exists (select from reversal r where r.lane_id = $1 and r.record_offset = t.record_offset
        and r.outcome_id = t.outcome_id)
    or exists (select from refusal f where f.org_id = t.org_id and f.lane_id = $1
        and f.record_offset = t.record_offset and f.outcome_id = t.outcome_id)
    or exists (select from waiting w where w.lane_id = $1 and w.record_offset = t.record_offset
        and w.timestamp_ms = t.timestamp_ms)
