-- Locks a lane's row for the transaction and reads what fences it.
-- $1 lane id
select epoch, next_offset, high_offset from lane where lane_id = $1 for no key update
