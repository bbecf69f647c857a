-- Removes what is acknowledged, unless another owner has the lane.
-- $1 lane id, $2 up to which position, $3 epoch
delete from outbox
where lane_id = $1 and position <= $2
    and exists (select from lane where lane_id = $1 and epoch = $3)
