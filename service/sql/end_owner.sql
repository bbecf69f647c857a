-- Ends the session that has a lane's row locked. An owner frozen in the middle of a COPY is reached by none of Postgres'
-- time-outs: it would hold the lane and its batch's customers until it wakes. Returns how many sessions were ended.
-- $1 topic, $2 partition
select count(pg_terminate_backend(k.pid))
from lane l
join pg_locks k on k.locktype = 'transactionid' and k.granted and k.transactionid = l.xmax
where l.topic = $1 and l.partition = $2
