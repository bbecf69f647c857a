-- Faults: programs that would be their org's second default; they leave the staging. To be repeated until it finds none
-- (an earlier line of the same program may come to count, and claim the same).
with final as (
    select distinct on (s.org_id, s.program_id) s.line, s.org_id, s.program_id, s.is_default
    from staged_program s
    order by s.org_id, s.program_id, s.line desc
), claims as (
    select f.line, f.org_id, f.program_id from final f where f.is_default
    union all
    select 0, p.org_id, p.program_id
    from program p
    where p.is_default and p.org_id in (select f.org_id from final f)
        and not exists (select from final f where f.org_id = p.org_id and f.program_id = p.program_id)
), ranked as (
    select c.line, c.org_id, c.program_id, first_value(c.program_id) over w as default_program,
        first_value(c.line) over w as default_line, row_number() over w as place
    from claims c
    window w as (partition by c.org_id order by c.line)
), bad as (
    select * from ranked where place > 1
), noted as (
    insert into staged_fault
    select b.line, 'default',
        format('default is true, but the default program of org %s is %s already (%s)', b.org_id, b.default_program,
            case b.default_line when 0 then 'in the ledger' else 'line ' || b.default_line end)
    from bad b
)
delete from staged_program s using bad b where s.line = b.line
