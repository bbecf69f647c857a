-- Removes the identifiers that name nobody or somebody else after the load: of customers whose set is given and of those
-- from whom another takes one over. An identifier goes to the last line that lists it, unless a later line of the same
-- customer gives a set without it.
with sets as (
    select s.org_id, s.customer_id, max(s.line) as line
    from staged_customer s
    where s.identifiers_given
    group by s.org_id, s.customer_id
), listed as (
    select distinct on (i.org_id, i.type, i.lookup) i.org_id, i.type, i.lookup, i.value, i.customer_id, i.line
    from staged_identifier i
    where i.line in (select s.line from staged_customer s)
    order by i.org_id, i.type, i.lookup, i.line desc
), stale as (
    select i.org_id, i.type, i.lookup
    from identifier i
    left join sets s on s.org_id = i.org_id and s.customer_id = i.customer_id
    left join listed l on l.org_id = i.org_id and l.type = i.type and l.lookup = i.lookup
    left join sets w on w.org_id = l.org_id and w.customer_id = l.customer_id and w.line = l.line
    where (s.line is not null or l.line is not null)
        and (w.line is null or l.customer_id <> i.customer_id or l.value <> i.value)
)
delete from identifier i using stale t where i.org_id = t.org_id and i.type = t.type and i.lookup = t.lookup
