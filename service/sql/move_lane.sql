-- Moves a lane's stored offset and counts what became of its records. Moves no row where the epoch is another's.
-- $1 lane id, $2 epoch, $3 next offset, $4 offset and $5 timestamp (ms) of the last record taken (null: none),
-- $6 taken, $7 completed, $8 failed, $9 booked, $10 unchanged, $11 repeated, $12 dead
update lane set
    next_offset = $3, high_offset = greatest(high_offset, $3),
    last_offset = coalesce($4, last_offset), last_timestamp_ms = coalesce($5, last_timestamp_ms),
    taken = taken + $6, completed = completed + $7, failed = failed + $8, booked = booked + $9,
    unchanged = unchanged + $10, repeated = repeated + $11, dead = dead + $12, updated_at = now()
where lane_id = $1 and epoch = $2
