-- Faults: lots or redemptions whose program is not known; they leave the staging.
-- (The table's name, staged_KIND, is put in by the function: it is one of ours.)
with bad as (
    select s.line, s.org_id, s.program_id
    from {table} s
    left join default_program d on d.org_id = s.org_id
    left join program p on p.org_id = s.org_id and p.program_id = coalesce(s.program_id, d.program_id)
    where p.program_id is null
), noted as (
    insert into staged_fault
    select b.line, 'programId',
        case when b.program_id is null then format('programId is required: org %s has no default program', b.org_id)
            else format('programId %s is no program of org %s', b.program_id, b.org_id) end
    from bad b
)
delete from {table} s using bad b where s.line = b.line
