-- Counts what became of other lanes' waiting records.
-- $1 the deciding lane; arrays: $2 lane ids, $3 completed, $4 failed, $5 booked, $6 unchanged, $7 dead
insert into lane_settled as s (lane_id, by_lane_id, completed, failed, booked, unchanged, dead)
select lane_id, $1, completed, failed, booked, unchanged, dead
from unnest($2::text::integer[], $3::text::bigint[], $4::text::bigint[], $5::text::bigint[], $6::text::bigint[], $7::text::bigint[])
    as t (lane_id, completed, failed, booked, unchanged, dead)
on conflict on constraint lane_settled_pk do update set
    completed = s.completed + excluded.completed, failed = s.failed + excluded.failed,
    booked = s.booked + excluded.booked, unchanged = s.unchanged + excluded.unchanged, dead = s.dead + excluded.dead
