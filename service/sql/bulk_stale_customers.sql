-- Customer lines whose `updatedAt` is older than that of an earlier line: they change nothing and leave the staging.
with dated as (
    select s.line, s.updated_at,
        max(s.updated_at) over (partition by s.org_id, s.customer_id order by s.line
            rows between unbounded preceding and 1 preceding) as before
    from staged_customer s
)
delete from staged_customer s using dated d where s.line = d.line and d.updated_at < d.before
