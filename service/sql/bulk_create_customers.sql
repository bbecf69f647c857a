-- Creates the customers that are mentioned for the first time.
insert into customer (org_id, customer_id)
select t.org_id, t.customer_id
from touched_customer t
where not t.known
order by t.org_id, t.customer_id
on conflict on constraint customer_pk do nothing
