-- Programs that are no longer their org's default, before another one becomes it. Counts the rows that changed.
update program p set is_default = false
from (
    select distinct on (s.org_id, s.program_id) s.org_id, s.program_id, s.is_default
    from staged_program s
    order by s.org_id, s.program_id, s.line desc
) as f
where p.org_id = f.org_id and p.program_id = f.program_id and p.is_default and not f.is_default
