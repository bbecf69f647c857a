-- Where the records of a range of orgs came from that wait.
-- $1 the first org, $2 the last
select l.topic, l.partition, w.record_offset
from waiting w
join lane l using (lane_id)
where w.org_id between $1 and $2
