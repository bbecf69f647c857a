-- Lots that stand in the file more than once: as known lots, compared with their first line. Returns how many are the same.
with firsts as (
    select s.org_id, s.lot_id, min(s.line) as line
    from staged_lot s
    group by s.org_id, s.lot_id
    having count(*) > 1
), repeats as (
    select s.line, s.lot_id, f.line as first_line, concat_ws(', ',
        case when s.customer_id <> l.customer_id then format('customerId (%s, here %s)', l.customer_id, s.customer_id) end,
        case when s.program_id <> coalesce(l.program_id, d.program_id)
            then format('programId (%s, here %s)', coalesce(l.program_id, d.program_id), s.program_id) end,
        case when s.points <> l.points
            then format('points (%s, here %s)', trim_scale(l.points / 1000.0), trim_scale(s.points / 1000.0)) end,
        case when s.expires_at is not null and s.expires_at is distinct from l.expires_at
            then format('expiresAt (%s, here %s)', coalesce(l.expires_at::text, 'never'), s.expires_at) end
        ) as differing
    from firsts f
    join staged_lot s on s.org_id = f.org_id and s.lot_id = f.lot_id and s.line > f.line
    join staged_lot l on l.line = f.line
    left join default_program d on d.org_id = l.org_id
), noted as (
    insert into staged_fault
    select r.line, split_part(r.differing, ' ', 1),
        format('lot %s stands on line %s with another %s', r.lot_id, r.first_line, r.differing)
    from repeats r where r.differing <> ''
), gone as (
    delete from staged_lot s using repeats r where s.line = r.line returning r.differing
)
select count(*) filter (where g.differing = '') from gone g
