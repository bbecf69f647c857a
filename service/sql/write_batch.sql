-- What a batch of returns comes to, in one statement: sequences of customers, points that lots and redemptions get back
-- (one row per target), reversals, journal entries, refusals, the outbox, and the lane, which moves for its own epoch only.
-- Says how many of the rows that are updated were there.
-- Arrays, of lanes: $1 ids, $2 epochs, $3 next offsets, $4 offsets and $5 timestamps (ms) of the last records taken (null:
-- none), $6 taken, $7 completed, $8 failed, $9 booked, $10 unchanged, $11 repeated, $12 dead, $13 up to which position their
-- outbox is acknowledged; of customers: $14 orgs, $15 ids, $16 sequences; of lots: $17 orgs, $18 ids, $19 points; of
-- redemptions: $20 orgs, $21 ids, $22 points, $23 units (null: not counted in units); of reversals: $24 orgs, $25 ids,
-- $26 keys, $27 customer ids, $28 program ids, $29 redemption ids, $30 journal entries, $31 points, $32 available,
-- $33 expired, $34 units, $35 sequences, $36 moments, $37 lanes, $38 offsets, $39 outcome ids, $40 fingerprints,
-- $41 outcomes; of journal entries: $42 orgs, $43 ids, $44 kinds, $45 moments, $46 customer ids, $47 redemption ids,
-- $48 accounts, $49 subjects and $50 points (arrays as text); of refusals: $51 orgs, $52 lanes, $53 offsets, $54 outcome
-- ids, $55 keys, $56 codes, $57 names, $58 messages, $59 customer ids, $60 sequences, $61 redemption ids, $62 order ids,
-- $63 moments, $64 outcomes; of the outbox: $65 lanes, $66 positions, $67 ids, $68 aggregatetypes, $69 aggregateids,
-- $70 types, $71 topics, $72 keys, $73 payloads, $74 headers
with moved as (
    update lane l set
        next_offset = t.next_offset, high_offset = greatest(l.high_offset, t.next_offset),
        last_offset = coalesce(t.last_offset, l.last_offset),
        last_timestamp_ms = coalesce(t.last_timestamp_ms, l.last_timestamp_ms),
        taken = l.taken + t.taken, completed = l.completed + t.completed, failed = l.failed + t.failed,
        booked = l.booked + t.booked, unchanged = l.unchanged + t.unchanged, repeated = l.repeated + t.repeated,
        dead = l.dead + t.dead, updated_at = now()
    from unnest(
        $1::text::integer[], $2::text::bigint[], $3::text::bigint[], $4::text::bigint[], $5::text::bigint[],
        $6::text::bigint[], $7::text::bigint[], $8::text::bigint[], $9::text::bigint[], $10::text::bigint[],
        $11::text::bigint[], $12::text::bigint[]
    ) as t (
        lane_id, epoch, next_offset, last_offset, last_timestamp_ms, taken, completed, failed, booked, unchanged, repeated, dead
    )
    where l.lane_id = t.lane_id and l.epoch = t.epoch
    returning 1
),
cleared as (
    delete from outbox o using unnest($1::text::integer[], $13::text::bigint[]) as t (lane_id, acknowledged)
    where o.lane_id = t.lane_id and o.position <= t.acknowledged
),
customers as (
    update customer c set sequence = t.sequence
    from unnest($14::text::bigint[], $15::text::bigint[], $16::text::bigint[]) as t (org_id, customer_id, sequence)
    where c.org_id = t.org_id and c.customer_id = t.customer_id
    returning 1
),
lots as (
    update lot l set remaining = l.remaining + t.points
    from unnest($17::text::bigint[], $18::text::text[], $19::text::bigint[]) as t (org_id, lot_id, points)
    where l.org_id = t.org_id and l.lot_id = t.lot_id
    returning 1
),
redemptions as (
    update redemption r set reversed = r.reversed + t.points, reversed_quantity = r.reversed_quantity + t.units
    from unnest($20::text::bigint[], $21::text::text[], $22::text::bigint[], $23::text::bigint[])
        as t (org_id, redemption_id, points, units)
    where r.org_id = t.org_id and r.redemption_id = t.redemption_id
    returning 1
),
reversals as (
    insert into reversal (
        org_id, reversal_id, idempotency_key, customer_id, program_id, redemption_id, journal_entry_id, points, available,
        expired, quantity, sequence, created_at, lane_id, record_offset, outcome_id, fingerprint, outcome
    )
    select * from unnest(
        $24::text::bigint[], $25::text::uuid[], $26::text::text[], $27::text::bigint[], $28::text::text[],
        $29::text::text[], $30::text::uuid[], $31::text::bigint[], $32::text::bigint[], $33::text::bigint[],
        $34::text::bigint[], $35::text::bigint[], $36::text::timestamptz[], $37::text::integer[], $38::text::bigint[],
        $39::text::uuid[], $40::bytea[], $41::text[]
    )
),
entries as (
    insert into journal (org_id, entry_id, kind, created_at, customer_id, redemption_id, accounts, subjects, points)
    select org_id, entry_id, kind, created_at, customer_id, redemption_id,
        accounts::text[], subjects::text[], points::bigint[]
    from unnest(
        $42::text::bigint[], $43::text::uuid[], $44::text::text[], $45::text::timestamptz[], $46::text::bigint[],
        $47::text::text[], $48::text[], $49::text[], $50::text[]
    ) as t (org_id, entry_id, kind, created_at, customer_id, redemption_id, accounts, subjects, points)
),
refusals as (
    insert into refusal (
        org_id, lane_id, record_offset, outcome_id, idempotency_key, code, name, message, customer_id, sequence,
        redemption_id, order_id, failed_at, outcome
    )
    select * from unnest(
        $51::text::bigint[], $52::text::integer[], $53::text::bigint[], $54::text::uuid[], $55::text::text[],
        $56::text::integer[], $57::text::text[], $58::text::text[], $59::text::bigint[], $60::text::bigint[],
        $61::text::text[], $62::text::text[], $63::text::timestamptz[], $64::text[]
    )
),
outgoing as (
    insert into outbox (
        lane_id, position, id, aggregatetype, aggregateid, type, topic, record_key, payload, headers
    )
    select * from unnest(
        $65::text::integer[], $66::text::bigint[], $67::text::uuid[], $68::text::text[], $69::text::text[],
        $70::text::text[], $71::text::text[], $72::bytea[], $73::bytea[], $74::text[]
    )
)
select (select count(*) from moved) as lane, (select count(*) from customers) as customer,
    (select count(*) from lots) as lot, (select count(*) from redemptions) as redemption
