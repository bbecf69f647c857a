-- Every lane with what waits on it and what its outbox still holds.
select l.lane_id, l.topic, l.partition, l.epoch, l.owner, l.next_offset, l.high_offset, l.taken, l.updated_at,
    (select count(*) from outbox o where o.lane_id = l.lane_id) as outbox,
    (select count(*) from waiting w where w.lane_id = l.lane_id) as waiting
from lane l
order by l.topic, l.partition
