-- All that a batch's decisions read, as it is committed by now, with its customers locked: one row, each set of rows in
-- it as an array per column (null: none). Of an order at most 1,000 redemptions, see lock_batch; of reversals by
-- customers in programs with a limit the latest, as many as it counts.
-- $1 the decision moment (null: now); arrays: $2 orgs; $3 orgs and $4 idempotency keys; $5 orgs and $6 redemption ids;
-- $7 orgs and $8 order ids; $9 orgs, $10 types and $11 look-ups of identifiers; $12 orgs and $13 lot ids; $14 orgs and $15
-- ids of customers whose lots the service chooses; $16 orgs and $17 ids of customers of redemptions to be booked; of what may
-- wait: $18 orgs and $19 customer ids, $20 orgs and $21 redemption ids, $22 orgs and $23 order ids
with moment (now) as materialized (
    select coalesce($1::timestamptz, clock_timestamp())
),
found as materialized (
    select r.*
    from unnest($5::text::bigint[], $6::text::text[]) as t (org_id, redemption_id)
    join redemption r on r.org_id = t.org_id and r.redemption_id = t.redemption_id
    union all
    select r.*
    from unnest($7::text::bigint[], $8::text::text[]) as t (org_id, order_id)
    cross join lateral (
        select * from redemption r where r.org_id = t.org_id and r.order_id = t.order_id
        order by r.redemption_id collate "C" limit 1000
    ) as r
),
owner (org_id, customer_id) as materialized (
    select * from unnest($16::text::bigint[], $17::text::bigint[]) where $3::text <> '{}'
    union
    select org_id, customer_id from found where $3::text <> '{}'
)
select moment.now, orgs.*, keys.*, redemptions.*, identifiers.*, lots.*, balances.*, times.*,
    exists (
        select from unnest($18::text::bigint[], $19::text::bigint[]) as t (org_id, customer_id)
        join waiting w on w.org_id = t.org_id and w.customer_id = t.customer_id
    ) or exists (
        select from unnest($20::text::bigint[], $21::text::text[]) as t (org_id, redemption_id)
        join waiting w on w.org_id = t.org_id and w.redemption_id = t.redemption_id
    ) or exists (
        select from unnest($22::text::bigint[], $23::text::text[]) as t (org_id, order_id)
        join waiting w on w.org_id = t.org_id and w.order_id = t.order_id
    ) as waiting
from moment
cross join (
    select array_agg(org), array_agg(reversal_enabled), array_agg(program_id), array_agg(is_default), array_agg(live),
        array_agg(decimals), array_agg(reversal_allowed), array_agg(allow_partial), array_agg(reversal_window_days),
        array_agg(minimum_points), array_agg(max_reversals_count), array_agg(max_reversals_days),
        array_agg(expired_lots_policy), array_agg(grace_days), array_agg(park_unknown_seconds)
    from (
        select o.reversal_enabled, p.*, o.org_id as org
        from org o
        left join program p on p.org_id = o.org_id
        where o.org_id = any ($2::text::bigint[])
        order by p.program_id
    ) as o
) as orgs
cross join (
    select array_agg(r.org_id), array_agg(r.idempotency_key), array_agg(r.outcome), array_agg(r.fingerprint),
        array_agg(r.outcome_id::text)
    from unnest($3::text::bigint[], $4::text::text[]) as t (org_id, idempotency_key)
    join reversal r on r.org_id = t.org_id and r.idempotency_key = t.idempotency_key
) as keys
cross join (
    select array_agg(org_id), array_agg(redemption_id), array_agg(customer_id), array_agg(program_id),
        array_agg(order_id), array_agg(type), array_agg(points), array_agg(reversed), array_agg(quantity),
        array_agg(reversed_quantity), array_agg(reward_id), array_agg(redeemed_at), json_agg(lot_ids), json_agg(lot_points)
    from found
) as redemptions
cross join (
    select array_agg(i.org_id), array_agg(i.type), array_agg(i.lookup), array_agg(i.customer_id)
    from unnest($9::text::bigint[], $10::text::text[], $11::text::text[]) as t (org_id, type, lookup)
    join identifier i on i.org_id = t.org_id and i.type = t.type and i.lookup = t.lookup
) as identifiers
cross join (
    select array_agg(org_id), array_agg(lot_id), array_agg(customer_id), array_agg(program_id), array_agg(points),
        array_agg(remaining), array_agg(expires_at), array_agg(issued_at), array_agg(restored_from)
    from (
        select l.*
        from (
            select * from unnest($12::text::bigint[], $13::text::text[])
            union
            select org_id, unnest(lot_ids) from found
        ) as t (org_id, lot_id)
        join lot l on l.org_id = t.org_id and l.lot_id = t.lot_id
        union all
        select l.*
        from unnest($14::text::bigint[], $15::text::bigint[]) as t (org_id, customer_id)
        join lot l on l.org_id = t.org_id and l.customer_id = t.customer_id
        where l.remaining > 0
    ) as l
) as lots
cross join (
    select array_agg(org_id), array_agg(customer_id), array_agg(program_id), array_agg(points)
    from (
        select l.org_id, l.customer_id, l.program_id, sum(l.remaining) as points
        from owner
        join lot l on l.org_id = owner.org_id and l.customer_id = owner.customer_id
        where l.expires_at is null or l.expires_at > (select now from moment)
        group by l.org_id, l.customer_id, l.program_id
    ) as l
) as balances
cross join (
    select array_agg(org_id), array_agg(customer_id), array_agg(program_id), array_agg(created_at)
    from (
        select r.org_id, r.customer_id, r.program_id, r.created_at
        from owner
        join program p on p.org_id = owner.org_id
        cross join lateral (
            select r.org_id, r.customer_id, r.program_id, r.created_at
            from reversal r
            where r.org_id = owner.org_id and r.customer_id = owner.customer_id and r.program_id = p.program_id
                and r.created_at > (select now from moment) - make_interval(days => least(p.max_reversals_days, 100000))
            order by r.created_at desc
            limit p.max_reversals_count
        ) as r
        where p.org_id = any ($2::text::bigint[]) and p.max_reversals_count > 0 and p.max_reversals_days > 0
        order by r.created_at desc
    ) as r
) as times
