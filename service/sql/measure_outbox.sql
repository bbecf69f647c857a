-- How much may not be on Kafka yet, of all lanes, and for how long.
select count(*) as rows, coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)::float8 as oldest_seconds
from outbox
