-- Removes the identifiers that name nobody or somebody else after the load: of customers whose set is given, and of those
-- from whom another takes one over. Counts the rows.
with touched as (
    select i.org_id, i.type, i.lookup, i.value, i.customer_id
    from final_identifier f
    join identifier i on i.org_id = f.org_id and i.type = f.type and i.lookup = f.lookup
    union
    select i.org_id, i.type, i.lookup, i.value, i.customer_id
    from staged_customer s
    join identifier i on i.org_id = s.org_id and i.customer_id = s.customer_id
    where s.identifiers_given
), stale as (
    select t.org_id, t.type, t.lookup
    from touched t
    left join final_identifier f on f.org_id = t.org_id and f.type = t.type and f.lookup = t.lookup
    where (f.stands and f.customer_id = t.customer_id and f.value = t.value) is not true
)
delete from identifier i using stale t where i.org_id = t.org_id and i.type = t.type and i.lookup = t.lookup
