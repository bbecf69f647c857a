-- Faults: redemptions that name a lot which is not known, or is another customer's or program's; they leave the staging.
with named as (
    select s.line, s.org_id, s.customer_id, coalesce(s.program_id, d.program_id) as program_id, u.lot_id, u.position
    from staged_redemption s
    left join default_program d on d.org_id = s.org_id
    cross join lateral unnest(s.lot_ids) with ordinality as u (lot_id, position)
), found as (
    select n.line, n.org_id, n.position, n.lot_id, n.customer_id, n.program_id,
        coalesce(l.customer_id, f.customer_id) as lot_customer_id,
        coalesce(l.program_id, f.program_id, d.program_id) as lot_program_id
    from named n
    left join lot l on l.org_id = n.org_id and l.lot_id = n.lot_id
    left join staged_lot f on f.org_id = n.org_id and f.lot_id = n.lot_id
    left join default_program d on d.org_id = f.org_id
), bad as (
    select distinct on (f.line) f.*
    from found f
    where (f.lot_customer_id, f.lot_program_id) is distinct from (f.customer_id, f.program_id)
    order by f.line, f.position
), noted as (
    insert into staged_fault
    select b.line, format('lots[%s].lotId', b.position - 1),
        case
            when b.lot_customer_id is null then format('lots[%s].lotId %s is not known', b.position - 1, b.lot_id)
            when b.lot_customer_id <> b.customer_id then format('lots[%s].lotId %s is a lot of customer %s, not of %s',
                b.position - 1, b.lot_id, b.lot_customer_id, b.customer_id)
            else format('lots[%s].lotId %s is a lot of the program %s, not of %s',
                b.position - 1, b.lot_id, b.lot_program_id, b.program_id)
        end
    from bad b
)
delete from staged_redemption s using bad b where s.line = b.line
