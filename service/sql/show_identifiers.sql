-- A customer's identifiers as they were given.
-- $1 org, $2 customer id
select i.type, i.value from identifier i where i.org_id = $1 and i.customer_id = $2 order by i.type, i.lookup
