-- Removes the identifiers that name nobody or somebody else after the load: of customers whose set is given, and of those
-- from whom another takes one over.
delete from identifier i using (
    select i.org_id, i.type, i.lookup
    from identifier i
    left join final_identifier f on f.org_id = i.org_id and f.type = i.type and f.lookup = i.lookup
    where (f.org_id is not null
            or (i.org_id, i.customer_id) in (select s.org_id, s.customer_id from staged_customer s where s.identifiers_given))
        and (f.stands and f.customer_id = i.customer_id and f.value = i.value) is not true
) as t
where i.org_id = t.org_id and i.type = t.type and i.lookup = t.lookup
