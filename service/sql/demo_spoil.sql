-- Give a program a rule that contradicts itself: a limit without days. `load` refuses such, other writers may not.
-- $1 org, $2 program
update program
set max_reversals_count = 1, max_reversals_days = null
where org_id = $1 and program_id = $2
