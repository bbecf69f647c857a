-- Which program serves an org where a line names none: the one flagged as default, else the only one.
insert into default_program (org_id, program_id)
select p.org_id, coalesce(max(p.program_id) filter (where p.is_default), max(p.program_id))
from program p
group by p.org_id
having count(*) = 1 or bool_or(p.is_default)
