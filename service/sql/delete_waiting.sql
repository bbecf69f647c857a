-- Takes settled records off the waiting list; fewer rows than asked: another lane settled one meanwhile.
-- arrays: $1 lane ids, $2 offsets, $3 timestamps (ms)
delete from waiting w using unnest($1::text::integer[], $2::text::bigint[], $3::text::bigint[]) as t (lane_id, record_offset, timestamp_ms)
where w.lane_id = t.lane_id and w.record_offset = t.record_offset and w.timestamp_ms = t.timestamp_ms
