-- Creates the customers that are mentioned for the first time, as their lines tell. Fewer rows than such customers:
-- somebody else created one meanwhile.
insert into customer (org_id, customer_id, status, locked_until, updated_at)
select t.org_id, t.customer_id, coalesce(f.status, 'active'), f.locked_until, f.updated_at
from touched_customer t
left join (
    select s.org_id, s.customer_id,
        (array_agg(s.status order by s.line desc) filter (where s.status is not null))[1] as status,
        (array_agg(s.locked_until order by s.line desc) filter (where s.locked_until_given))[1] as locked_until,
        max(s.updated_at) as updated_at
    from staged_customer s
    group by s.org_id, s.customer_id
) as f on f.org_id = t.org_id and f.customer_id = t.customer_id
where not t.known
order by t.org_id, t.customer_id
on conflict on constraint customer_pk do nothing
