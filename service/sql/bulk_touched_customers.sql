-- The customers of the lines that are left; `known`: the ledger has them.
insert into touched_customer (org_id, customer_id, known)
select t.org_id, t.customer_id, c.customer_id is not null
from (
    select org_id, customer_id from staged_customer
    union select org_id, customer_id from staged_lot
    union select org_id, customer_id from staged_redemption
) as t
left join customer c on c.org_id = t.org_id and c.customer_id = t.customer_id
