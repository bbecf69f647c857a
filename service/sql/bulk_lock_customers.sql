-- Locks the customers that were there before, in the order in which the service locks them.
with locked as materialized (
    select c.org_id, c.customer_id
    from customer c
    where (c.org_id, c.customer_id) in (select t.org_id, t.customer_id from touched_customer t where t.known)
    order by c.org_id, c.customer_id
    for no key update
)
select count(*) from locked
