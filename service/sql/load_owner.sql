-- Reads who owns a lane now, without waiting for anybody.
-- $1 lane id
select epoch, owner from lane where lane_id = $1
