-- Replaces programs; of a program's lines the last counts. Counts the rows that changed.
insert into program as p (org_id, program_id, is_default, live, decimals, reversal_allowed, allow_partial,
    reversal_window_days, minimum_points, max_reversals_count, max_reversals_days, expired_lots_policy, grace_days,
    park_unknown_seconds)
select distinct on (s.org_id, s.program_id) s.org_id, s.program_id, s.is_default, s.live, s.decimals, s.reversal_allowed,
    s.allow_partial, s.reversal_window_days, s.minimum_points, s.max_reversals_count, s.max_reversals_days,
    s.expired_lots_policy, s.grace_days, s.park_unknown_seconds
from staged_program s
order by s.org_id, s.program_id, s.line desc
on conflict on constraint program_pk do update set
    is_default = excluded.is_default, live = excluded.live, decimals = excluded.decimals,
    reversal_allowed = excluded.reversal_allowed, allow_partial = excluded.allow_partial,
    reversal_window_days = excluded.reversal_window_days, minimum_points = excluded.minimum_points,
    max_reversals_count = excluded.max_reversals_count, max_reversals_days = excluded.max_reversals_days,
    expired_lots_policy = excluded.expired_lots_policy, grace_days = excluded.grace_days,
    park_unknown_seconds = excluded.park_unknown_seconds
    where p is distinct from excluded
