-- How many lines of a load have a fault.
select count(distinct f.line) from staged_fault f
