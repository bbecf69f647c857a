-- Redemptions that stand in the file more than once: as known ones, compared with their first line. Returns how many are
-- the same.
with firsts as (
    select s.org_id, s.redemption_id, min(s.line) as line
    from staged_redemption s
    group by s.org_id, s.redemption_id
    having count(*) > 1
), repeats as (
    select s.line, s.redemption_id, f.line as first_line, concat_ws(', ',
        case when s.customer_id <> r.customer_id then format('customerId (%s, here %s)', r.customer_id, s.customer_id) end,
        case when s.program_id <> coalesce(r.program_id, d.program_id)
            then format('programId (%s, here %s)', coalesce(r.program_id, d.program_id), s.program_id) end,
        case when s.order_id is not null and s.order_id is distinct from r.order_id
            then format('orderId (%s, here %s)', coalesce(r.order_id, 'none'), s.order_id) end,
        case when s.type <> coalesce(r.type, 'RAW')
            then format('type (%s, here %s)', coalesce(r.type, 'RAW'), s.type) end,
        case when s.points <> r.points
            then format('points (%s, here %s)', trim_scale(r.points / 1000.0), trim_scale(s.points / 1000.0)) end,
        case when s.quantity is not null and s.quantity is distinct from r.quantity
            then format('quantity (%s, here %s)', coalesce(r.quantity::text, 'none'), s.quantity) end,
        case when s.reward_id is not null and s.reward_id is distinct from r.reward_id
            then format('rewardId (%s, here %s)', coalesce(r.reward_id, 'none'), s.reward_id) end,
        case when s.lot_ids is not null and (s.lot_ids, s.lot_points)
                is distinct from (coalesce(r.lot_ids, '{}'), coalesce(r.lot_points, '{}'))
            then 'lots' end
        ) as differing
    from firsts f
    join staged_redemption s on s.org_id = f.org_id and s.redemption_id = f.redemption_id and s.line > f.line
    join staged_redemption r on r.line = f.line
    left join default_program d on d.org_id = r.org_id
), noted as (
    insert into staged_fault
    select r.line, split_part(r.differing, ' ', 1),
        format('redemption %s stands on line %s with another %s', r.redemption_id, r.first_line, r.differing)
    from repeats r where r.differing <> ''
), gone as (
    delete from staged_redemption s using repeats r where s.line = r.line returning r.differing
)
select count(*) filter (where g.differing = '') from gone g
