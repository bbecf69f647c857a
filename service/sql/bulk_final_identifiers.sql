-- To whom the listed identifiers go: to the customer of the last line that lists one; it does not stand where a later
-- line of that customer gives a set without it.
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
)
insert into final_identifier (org_id, type, lookup, value, customer_id, stands)
select l.org_id, l.type, l.lookup, l.value, l.customer_id, w.line is not null
from listed l
left join sets w on w.org_id = l.org_id and w.customer_id = l.customer_id and w.line = l.line
