-- The decision moment, and the orgs with their programs; at least one row.
-- $1 orgs
select m.moment, o.org_id, o.reversal_enabled, p.program_id, p.is_default, p.live, p.decimals, p.reversal_allowed,
    p.allow_partial, p.reversal_window_days, p.minimum_points, p.max_reversals_count, p.max_reversals_days,
    p.expired_lots_policy, p.grace_days, p.park_unknown_seconds
from (select clock_timestamp() as moment) as m
left join org o on o.org_id = any ($1::text::bigint[])
left join program p on p.org_id = o.org_id
order by p.program_id
