-- What a lane decided and may not have published, in order.
-- $1 lane id, $2 after which position, $3 at most how many
select position, topic, record_key, payload, headers from outbox
where lane_id = $1 and position > $2
order by position
limit $3
