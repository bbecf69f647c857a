-- Whom an identifier names.
-- $1 org, $2 type, $3 look-up
select i.customer_id from identifier i where i.org_id = $1 and i.type = $2 and i.lookup = $3
