-- Brings the customers that were there before up to date, line by line: what is given replaces what was. Counts the rows
-- that changed.
update customer c
set status = coalesce(f.status, c.status),
    locked_until = case when f.locked_until_given then f.locked_until else c.locked_until end,
    updated_at = coalesce(f.updated_at, c.updated_at)
from (
    select s.org_id, s.customer_id,
        (array_agg(s.status order by s.line desc) filter (where s.status is not null))[1] as status,
        (array_agg(s.locked_until order by s.line desc) filter (where s.locked_until_given))[1] as locked_until,
        bool_or(s.locked_until_given) as locked_until_given,
        max(s.updated_at) as updated_at
    from staged_customer s
    join touched_customer t on t.org_id = s.org_id and t.customer_id = s.customer_id
    where t.known
    group by s.org_id, s.customer_id
) as f
where c.org_id = f.org_id and c.customer_id = f.customer_id
    and (c.status, c.locked_until, c.updated_at) is distinct from (
        coalesce(f.status, c.status), case when f.locked_until_given then f.locked_until else c.locked_until end,
        coalesce(f.updated_at, c.updated_at))
