-- Which customers a batch is about, without locks (a redemption's customer never changes; an identifier's may). Of an
-- order with more than 1,000 redemptions (a placeholder for an order id) the first 1,000: two are too many already.
-- arrays: $1 orgs and $2 redemption ids; $3 orgs and $4 order ids; $5 orgs, $6 types and $7 look-ups of identifiers
select r.org_id, r.customer_id
from unnest($1::text::bigint[], $2::text::text[]) as t (org_id, redemption_id)
join redemption r on r.org_id = t.org_id and r.redemption_id = t.redemption_id
union
select r.org_id, r.customer_id
from unnest($3::text::bigint[], $4::text::text[]) as t (org_id, order_id)
cross join lateral (
    select r.org_id, r.customer_id from redemption r where r.org_id = t.org_id and r.order_id = t.order_id
    order by r.redemption_id collate "C" limit 1000
) as r
union
select i.org_id, i.customer_id
from unnest($5::text::bigint[], $6::text::text[], $7::text::text[]) as t (org_id, type, lookup)
join identifier i on i.org_id = t.org_id and i.type = t.type and i.lookup = t.lookup
