-- Redemptions that the ledger has already: faults where their content is another; all of them leave the staging. Returns
-- how many are the same. What a line does not give is not compared, nor is what was given back or the time.
with known as (
    select s.line, s.redemption_id, concat_ws(', ',
        case when s.customer_id <> r.customer_id then format('customerId (%s, here %s)', r.customer_id, s.customer_id) end,
        case when s.program_id <> r.program_id then format('programId (%s, here %s)', r.program_id, s.program_id) end,
        case when s.order_id is not null and s.order_id is distinct from r.order_id
            then format('orderId (%s, here %s)', coalesce(r.order_id, 'none'), s.order_id) end,
        case when s.type <> r.type then format('type (%s, here %s)', r.type, s.type) end,
        case when s.points <> r.points
            then format('points (%s, here %s)', trim_scale(r.points / 1000.0), trim_scale(s.points / 1000.0)) end,
        case when s.quantity is not null and s.quantity is distinct from r.quantity
            then format('quantity (%s, here %s)', coalesce(r.quantity::text, 'none'), s.quantity) end,
        case when s.reward_id is not null and s.reward_id is distinct from r.reward_id
            then format('rewardId (%s, here %s)', coalesce(r.reward_id, 'none'), s.reward_id) end,
        case when s.lot_ids is not null and (s.lot_ids, s.lot_points) is distinct from (r.lot_ids, r.lot_points)
            then 'lots' end
        ) as differing
    from staged_redemption s
    join redemption r on r.org_id = s.org_id and r.redemption_id = s.redemption_id
), noted as (
    insert into staged_fault
    select k.line, split_part(k.differing, ' ', 1),
        format('redemption %s is in the ledger with another %s', k.redemption_id, k.differing)
    from known k where k.differing <> ''
), gone as (
    delete from staged_redemption s using known k where s.line = k.line returning k.differing
)
select count(*) filter (where g.differing = '') from gone g
