-- Lots that the ledger has already: faults where their content is another; all of them leave the staging. Returns how
-- many are the same. What a line does not give is not compared, nor is `remaining` or the time of issue.
with known as (
    select s.line, s.lot_id, concat_ws(', ',
        case when s.customer_id <> l.customer_id then format('customerId (%s, here %s)', l.customer_id, s.customer_id) end,
        case when s.program_id <> l.program_id then format('programId (%s, here %s)', l.program_id, s.program_id) end,
        case when s.points <> l.points
            then format('points (%s, here %s)', trim_scale(l.points / 1000.0), trim_scale(s.points / 1000.0)) end,
        case when s.expires_at is not null and s.expires_at is distinct from l.expires_at
            then format('expiresAt (%s, here %s)', coalesce(l.expires_at::text, 'never'), s.expires_at) end
        ) as differing
    from staged_lot s
    join lot l on l.org_id = s.org_id and l.lot_id = s.lot_id
), noted as (
    insert into staged_fault
    select k.line, split_part(k.differing, ' ', 1),
        format('lot %s is in the ledger with another %s', k.lot_id, k.differing)
    from known k where k.differing <> ''
), gone as (
    delete from staged_lot s using known k where s.line = k.line returning k.differing
)
select count(*) filter (where g.differing = '') from gone g
