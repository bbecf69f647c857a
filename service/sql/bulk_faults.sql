-- The faults of a load by line; none beyond the first $1 (null: all).
select f.line, f.field, f.message from staged_fault f order by f.line, f.field limit $1
