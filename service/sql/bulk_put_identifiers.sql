-- Gives identifiers to the customers who have them after the load (see bulk_drop_identifiers), also where somebody else
-- took one meanwhile.
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
insert into identifier as i (org_id, type, lookup, value, customer_id)
select l.org_id, l.type, l.lookup, l.value, l.customer_id
from listed l
join sets w on w.org_id = l.org_id and w.customer_id = l.customer_id and w.line = l.line
order by l.org_id, l.type, l.lookup
on conflict on constraint identifier_pk do update set value = excluded.value, customer_id = excluded.customer_id
    where (i.value, i.customer_id) is distinct from (excluded.value, excluded.customer_id)
