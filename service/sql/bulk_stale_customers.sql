-- Customer lines whose `updatedAt` is older than the stored one or than an earlier line's: they change nothing and leave
-- the staging. To be run under the customers' locks.
with dated as (
    select s.line, s.org_id, s.customer_id, s.updated_at,
        max(s.updated_at) over (partition by s.org_id, s.customer_id order by s.line
            rows between unbounded preceding and 1 preceding) as before
    from staged_customer s
), stale as (
    select d.line
    from dated d
    join customer c on c.org_id = d.org_id and c.customer_id = d.customer_id
    where d.updated_at < greatest(c.updated_at, d.before)
)
delete from staged_customer s using stale t where s.line = t.line
