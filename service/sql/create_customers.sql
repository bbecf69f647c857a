-- Creates the customers that are mentioned for the first time, where their org is known; returns those created.
-- arrays: $1 orgs, $2 customer ids; $3 as lock_batch's $11
insert into customer (org_id, customer_id)
select t.org_id, t.customer_id
from unnest($1::text::bigint[], $2::text::bigint[]) as t (org_id, customer_id)
where exists (select from org o where o.org_id = t.org_id) and set_config('lock_timeout', $3, true) is not null
order by t.org_id, t.customer_id
on conflict on constraint customer_pk do nothing
returning org_id, customer_id
