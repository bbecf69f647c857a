-- Makes the caller a lane's owner: creates it where it is new, raises its epoch, so that every earlier owner is fenced.
-- Waits for a transaction of the earlier owner that is under way.
-- $1 topic, $2 partition, $3 owner
insert into lane as l (topic, partition, owner, epoch) values ($1, $2, $3, 1)
on conflict on constraint lane_partition do update set epoch = l.epoch + 1, owner = excluded.owner, updated_at = now()
returning lane_id, epoch, next_offset, high_offset, last_offset, last_timestamp_ms,
    (select count(*) from waiting w where w.lane_id = l.lane_id) as waiting
