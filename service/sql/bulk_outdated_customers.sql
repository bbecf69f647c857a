-- Customer lines whose `updatedAt` is older than the stored one: they change nothing and leave the staging. To be run
-- under the customers' locks.
delete from staged_customer s using touched_customer t, customer c
where t.known and t.org_id = s.org_id and t.customer_id = s.customer_id
    and c.org_id = s.org_id and c.customer_id = s.customer_id
    and s.updated_at < c.updated_at
