-- Invariant 6: lanes whose taken records are not accounted for, or whose completed ones are not their reversals.
-- $1 at most how many rows; `broken` counts all of them
with settled as (
    select s.lane_id, sum(s.completed) as completed, sum(s.failed) as failed, sum(s.booked) as booked,
        sum(s.unchanged) as unchanged, sum(s.dead) as dead
    from lane_settled s
    group by s.lane_id
), parked as (
    select w.lane_id, count(*) as records from waiting w group by w.lane_id
), reversals as (
    select v.lane_id, count(*) as records from reversal v group by v.lane_id
), ids as (
    select lane_id from lane
    union select lane_id from settled
    union select lane_id from parked
    union select lane_id from reversals
), counted as (
    select i.lane_id, l.topic, l.partition, l.taken,
        l.completed + coalesce(s.completed, 0) as completed,
        l.failed + coalesce(s.failed, 0) as failed,
        l.booked + coalesce(s.booked, 0) as booked,
        l.unchanged + coalesce(s.unchanged, 0) as unchanged,
        l.repeated,
        l.dead + coalesce(s.dead, 0) as dead,
        coalesce(p.records, 0) as waiting,
        coalesce(v.records, 0) as reversals
    from ids i
    left join lane l using (lane_id)
    left join settled s using (lane_id)
    left join parked p using (lane_id)
    left join reversals v using (lane_id)
), broken as materialized (
    select c.lane_id as "laneId", c.topic, c.partition,
        case
            when c.topic is null then 'has records but is not there'
            when c.completed <> c.reversals then format('%s completed, but it has %s reversals', c.completed, c.reversals)
            else format(
                '%s taken, but %s completed + %s failed + %s booked + %s unchanged + %s repeated + %s dead + %s waiting = %s',
                c.taken, c.completed, c.failed, c.booked, c.unchanged, c.repeated, c.dead, c.waiting,
                c.completed + c.failed + c.booked + c.unchanged + c.repeated + c.dead + c.waiting)
        end as fault
    from counted c
    where c.topic is null
        or c.completed <> c.reversals
        or c.taken <> c.completed + c.failed + c.booked + c.unchanged + c.repeated + c.dead + c.waiting
)
select b.*, count(*) over () as broken
from broken b
order by 1
limit $1
