-- Invariant 7: reversals whose outcome as published is not what their row and their journal entry hold: ids, key,
-- points, split, units, lots in their order; reversals without entry and entries without reversal.
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them. Raises 22P02 where an outcome is no JSON.
with entry as (
    select j.* from journal j where ($1::bigint is null or j.org_id = $1) and j.kind = 'reversal'
), stored as (
    select v.* from reversal v where $1::bigint is null or v.org_id = $1
), compared as (
    select coalesce(v.org_id, j.org_id) as org_id, v.reversal_id, coalesce(v.journal_entry_id, j.entry_id) as entry_id,
        case
            when v.reversal_id is null then 'no reversal names this journal entry'
            when j.entry_id is null then 'its journal entry is not there'
            when (j.customer_id, j.redemption_id) is distinct from (v.customer_id, v.redemption_id)
                then 'its journal entry is of another customer or redemption'
            when p.redeemed is distinct from -v.points
                then format('its points are %s, its journal entry gives back %s',
                    trim_scale(v.points / 1000.0), trim_scale(-p.redeemed / 1000.0))
            when not o.outcome @> jsonb_build_object(
                    'orgId', v.org_id, 'reversalId', v.reversal_id, 'journalEntryId', v.journal_entry_id,
                    'idempotencyKey', v.idempotency_key, 'customerId', v.customer_id, 'programId', v.program_id,
                    'redemptionId', v.redemption_id, 'quantity', v.quantity, 'sequence', v.sequence)
                then 'its outcome names other ids, key, quantity or sequence than its row'
            when not o.outcome @> jsonb_build_object(
                    'pointsReversed', trim_scale(v.points / 1000.0)::text,
                    'pointsReversedDetails', jsonb_build_object(
                        'available', trim_scale(v.available / 1000.0)::text,
                        'expired', trim_scale(v.expired / 1000.0)::text))
                then format('its points are %s (%s available, %s expired), its outcome says otherwise',
                    trim_scale(v.points / 1000.0), trim_scale(v.available / 1000.0), trim_scale(v.expired / 1000.0))
            when jsonb_path_query_array(o.outcome, '$.lots[*].lotId') is distinct from p.lots
                or jsonb_path_query_array(o.outcome, '$.lots[*].points') is distinct from p.lot_points
                then 'its outcome restores other lots than its journal entry'
            when p.available is distinct from v.available
                then format('its lots that are not expired sum to %s, its available points are %s',
                    trim_scale(p.available / 1000.0), trim_scale(v.available / 1000.0))
        end as fault
    from stored v
    full join entry j on j.org_id = v.org_id and j.entry_id = v.journal_entry_id
    cross join lateral (select v.outcome::jsonb as outcome offset 0) as o
    cross join lateral (
        select coalesce(jsonb_agg(h.subject) filter (where h.account = 'held'), '[]') as lots,
            coalesce(jsonb_agg(trim_scale(h.points / 1000.0)::text) filter (where h.account = 'held'), '[]') as lot_points,
            coalesce(sum(h.points) filter (where h.account = 'redeemed'), 0) as redeemed,
            coalesce(sum(h.points) filter (where h.account = 'held'
                and o.outcome #>> array['lots', (h.held - 1)::text, 'expired'] = 'false'), 0) as available
        from (
            select u.account, u.subject, u.points,
                count(*) filter (where u.account = 'held') over (order by u.position) as held
            from unnest(j.accounts, j.subjects, j.points) with ordinality as u (account, subject, points, position)
        ) as h
    ) as p
), broken as materialized (
    select c.org_id, c.reversal_id::text as "reversalId", c.entry_id::text as "journalEntryId", c.fault
    from compared c
    where c.fault is not null
)
select b.*, count(*) over () as broken
from broken b
order by 1, 2
limit $2
