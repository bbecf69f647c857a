-- Locks lanes, then the customers that their batch is about, in one order, so that two batches never wait for each other in
-- a ring. Whom redemptions, orders and identifiers name is looked up without locks: a redemption's customer never
-- changes, an identifier's may. Of an order with more than 1,000 redemptions (a placeholder for an order id) the first
-- 1,000: two are too many already. One row at least, with the lanes as arrays. (Customers are locked one by one, in
-- a subquery of their own: what a join locks may be older than the lock.)
-- arrays: $1 lane ids; $2 orgs and $3 customer ids; $4 orgs and $5 redemption ids; $6 orgs and $7 order ids;
-- $8 orgs, $9 types and $10 look-ups of identifiers. $11 for how long the transaction waits for any one lock from here on
-- (null: for as long as its session does)
with about (org_id, customer_id) as (
    select * from unnest($2::text::bigint[], $3::text::bigint[])
    union
    select r.org_id, r.customer_id
    from unnest($4::text::bigint[], $5::text::text[]) as t (org_id, redemption_id)
    join redemption r on r.org_id = t.org_id and r.redemption_id = t.redemption_id
    union
    select r.org_id, r.customer_id
    from unnest($6::text::bigint[], $7::text::text[]) as t (org_id, order_id)
    cross join lateral (
        select r.org_id, r.customer_id from redemption r where r.org_id = t.org_id and r.order_id = t.order_id
        order by r.redemption_id collate "C" limit 1000
    ) as r
    union
    select i.org_id, i.customer_id
    from unnest($8::text::bigint[], $9::text::text[], $10::text::text[]) as t (org_id, type, lookup)
    join identifier i on i.org_id = t.org_id and i.type = t.type and i.lookup = t.lookup
)
select l.lane_ids, l.epochs, l.next_offsets, c.*
from (
    select array_agg(lane_id) as lane_ids, array_agg(epoch) as epochs, array_agg(next_offset) as next_offsets
    from (
        select lane_id, epoch, next_offset from lane
        where lane_id = any ($1::text::integer[]) and set_config('lock_timeout', $11, true) is not null
        order by lane_id for no key update
    ) as l
) as l
left join (
    select c.*
    from (select org_id, customer_id from about order by org_id, customer_id) as a
    cross join lateral (
        select c.org_id, c.customer_id, c.status, c.locked_until, c.sequence, c.updated_at
        from customer c
        where c.org_id = a.org_id and c.customer_id = a.customer_id
        for no key update
    ) as c
) as c on true
