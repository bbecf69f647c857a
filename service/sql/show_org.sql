-- Whether an org is known.
-- $1 org
select exists (select from org o where o.org_id = $1)
