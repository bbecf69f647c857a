-- Sets a lane's stored offset and raises its epoch, so that whoever owns it finds out. The record before the new offset is
-- not known: nothing is compared on the next assignment. A lane that nobody had yet is made.
-- $1 topic, $2 partition, $3 the offset
insert into lane as l (topic, partition, epoch, next_offset, high_offset) values ($1, $2, 1, $3, $3)
on conflict on constraint lane_partition do update set
    epoch = l.epoch + 1, owner = null, next_offset = excluded.next_offset,
    high_offset = greatest(l.high_offset, excluded.next_offset), last_offset = null, last_timestamp_ms = null,
    updated_at = now()
returning l.epoch
