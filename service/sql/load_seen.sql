-- Which records of a lane were refused before or wait: for records below the lane's high offset. (One that has its
-- reversal is told by its key.)
-- $1 lane id; arrays: $2 orgs, $3 offsets, $4 timestamps (ms), $5 outcome ids
select t.outcome_id::text
from unnest($2::text::bigint[], $3::text::bigint[], $4::text::bigint[], $5::text::uuid[])
    as t (org_id, record_offset, timestamp_ms, outcome_id)
where exists (select from refusal f where f.org_id = t.org_id and f.lane_id = $1
        and f.record_offset = t.record_offset and f.outcome_id = t.outcome_id)
    or exists (select from waiting w where w.lane_id = $1 and w.record_offset = t.record_offset
        and w.timestamp_ms = t.timestamp_ms)
