-- A customer.
-- $1 org, $2 customer id
select c.customer_id, c.status, c.locked_until, c.sequence, c.updated_at
from customer c
where c.org_id = $1 and c.customer_id = $2
