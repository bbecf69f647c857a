-- Gives identifiers to the customers who have them after the load, also where somebody else took one meanwhile.
insert into identifier as i (org_id, type, lookup, value, customer_id)
select f.org_id, f.type, f.lookup, f.value, f.customer_id
from final_identifier f
where f.stands
order by f.org_id, f.type, f.lookup
on conflict on constraint identifier_pk do update set value = excluded.value, customer_id = excluded.customer_id
    where (i.value, i.customer_id) is distinct from (excluded.value, excluded.customer_id)
