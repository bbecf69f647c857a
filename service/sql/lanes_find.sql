-- Where a lane stands, locked for the transaction.
-- $1 topic, $2 partition
select l.lane_id, l.epoch, l.owner, l.next_offset, l.high_offset
from lane l
where l.topic = $1 and l.partition = $2
for no key update
